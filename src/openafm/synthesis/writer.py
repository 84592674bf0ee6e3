"""The language model that writes problems and solutions: templates in, lines out, within a budget of tokens.

The writer is the model folder `models/writer` of the sources, or whatever a step's `writer` names: a server of a
stronger model, a package, another folder. Without one the steps keep to their programmatic half, and their metrics say
so.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch

from openafm.files import default_cache
from openafm.sampling.opening import open_sampler
from openafm.sampling.sampler import Sampler
from openafm.stage import Config, Context


class WriterConfig(Config):
    """A writer other than the sources' own."""

    where: str
    """An OpenAI-compatible server (`http://…/v1`), a package or a model folder."""
    model: str = ""
    """The name of the server's model. What it answered is kept in the cache of downloads, under `endpoint`."""
    engine: Literal["torch", "native"] = "torch"
    """What decodes a package or a model folder."""


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "prompts")
    return jinja2.Environment(loader=folder, undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)


def render(template: str, **values: Any) -> str:
    """Fill in `prompts/<template>.jinja`; a value the template misses is an error."""
    return _templates().get_template(f"{template}.jinja").render(**values).strip("\n")


class Writer:
    """Asks a sampler through templates. Answers are kept in the step's scratch, so a killed step asks nothing twice."""

    def __init__(self, sampler: Sampler | None, context: Context, name: str = ""):
        self.sampler, self.context, self.name, self.tokens = sampler, context, name, 0

    @classmethod
    def open(cls, sources: Path, context: Context, wanted: bool = True, config: WriterConfig | None = None) -> "Writer":
        """Open the writer of the config or of the sources; an absent one when there is none or none is wanted."""
        folder = sources / "models" / "writer"
        if not wanted or not (config or folder.exists()):
            return cls(None, context)
        dtype = torch.bfloat16 if context.hardware.precision == "bfloat16" else torch.float32
        if config is None:
            return cls(open_sampler(str(folder), dtype=dtype), context, "models/writer")
        cache = default_cache() / "endpoint"
        sampler = open_sampler(config.where, model=config.model, cache=cache, dtype=dtype, engine=config.engine)
        return cls(sampler, context, config.model or Path(config.where).name)

    @property
    def present(self) -> bool:
        """Whether there is a model to ask."""
        return self.sampler is not None

    @property
    def used(self) -> dict[str, Any]:
        """Which writer wrote how many tokens, for the metrics."""
        return {"model": self.name or "none", "tokens": self.tokens}

    def write(
        self, template: str, rows: Sequence[dict[str, Any]], *, n: int = 1, max_tokens: int, temperature: float = 0.7
    ) -> list[list[str]]:
        """Return `n` continuations of the template for each row of its values.

        Templates are text to continue after a few examples, not chats: small models follow examples better than orders.
        """
        if self.sampler is None or not rows:
            return [[] for _ in rows]
        prompts = [render(template, **row) for row in rows]
        seed = int.from_bytes(hashlib.sha256(f"{self.context.seed}/{template}".encode()).digest()[:4], "big")
        request = json.dumps([prompts, n, max_tokens, temperature, seed])
        kept = self.context.scratch / f"written-{hashlib.sha256(request.encode()).hexdigest()[:16]}.json"
        if not kept.exists():
            self.context.report(f"writing: {template}", 0, None)
            found = self.sampler.sample(prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed)
            beside = kept.with_suffix(".part")
            beside.write_text(json.dumps([[[c.text, len(c.logprobs)] for c in row] for row in found]))
            beside.replace(kept)
        written = json.loads(kept.read_text())
        self.tokens += sum(tokens for row in written for _, tokens in row)
        return [[text for text, _ in row] for row in written]


def line(text: str) -> str:
    """The first line a model wrote, without quotes: what follows is its next example."""
    return text.strip().partition("\n")[0].strip("\"'` ")
