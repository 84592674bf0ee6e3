"""Bits per byte by domain: how well a model predicts texts that no recipe here trains on.

Texts are cut into pieces of the same bytes for every model, each scored whole from its first token on, so models with
different tokenizers compare piece by piece. Bits per byte = sum(-log2 p(token)) / UTF-8 bytes.
"""

import ast
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from openafm.evaluation.suite.items import Item
from openafm.evaluation.suite.material import Material, spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task

PIECE = 1536
"""Characters of a piece."""


def measure(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Bits of each piece, by domain."""
    for domain, pieces in bench.context.track(_domains(bench.material).items(), "domains"):
        chosen = spread(pieces, bench.size.items)
        encoded = [subject.tokenizer.encode(piece) for piece in chosen]
        most = subject.context_length
        pairs = [([subject.tokenizer.bos_id], tokens[:most]) for tokens in encoded]
        for number, (piece, (_, tokens), (nats, _)) in enumerate(
            zip(chosen, pairs, subject.logprobs(pairs), strict=True)
        ):
            size = (
                len(piece.encode()) if len(encoded[number]) <= most else len(subject.tokenizer.decode(tokens).encode())
            )
            yield Item(domain, f"{domain}/{number}", -nats / math.log(2), size, {"begins": piece[:80]})


def _domains(material: Material) -> dict[str, list[str]]:
    """Domain -> its pieces."""
    return {
        "encyclopedia": pieces("\n\n".join(paragraphs(material))),
        "documentation": pieces(material.text("text/documentation")),
        "code": pieces("\n\n".join(data.decode() for data in material.files("text/code").values())),
        "math": pieces("\n\n".join(_docstrings(material.text("text/math")))),
    }


def paragraphs(material: Material) -> list[str]:
    """The Wikipedia paragraphs that SQuAD's development questions are asked of."""
    return [part["context"] for article in squad(material) for part in article["paragraphs"]]


def squad(material: Material) -> list[dict[str, Any]]:
    """SQuAD 2.0's development articles (Rajpurkar et al., 2018)."""
    found: list[dict[str, Any]] = json.loads(material.text("squad"))["data"]
    return found


def pieces(text: str) -> list[str]:
    """The text in pieces of `PIECE` characters; a last, shorter one is left out."""
    return [text[start : start + PIECE] for start in range(0, len(text) - PIECE + 1, PIECE)]


def _docstrings(source: str) -> Iterator[str]:
    """The texts that a module of documentation assigns to names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


TASKS = (
    Task(
        "text", "bits per byte of texts", measure, Size(12), Size(150),
        ("squad", "text/documentation", "text/code", "text/math"), "lower", "bits",
    ),
)  # fmt: skip
