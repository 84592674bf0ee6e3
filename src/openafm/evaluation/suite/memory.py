"""What a model has kept: passages of its training text, names in famous books, and the order of benchmarks.

- `extracted`: of a run's model, whether it continues a training document word for word (Carlini et al., arXiv
  2202.07646); held-out documents beside them are the control.
- `cloze`: the name left out of a passage of a book (Chang et al., arXiv 2305.00118). No guess is likely to be right.
- `order`: by how many nats a benchmark's questions are likelier in the order they were published in than shuffled
  (Oren et al., arXiv 2310.17623). Who has not read them cannot tell: an interval above 0 shows contamination.
"""

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from openafm import jsonl
from openafm.evaluation.suite.choices import mmlu
from openafm.evaluation.suite.items import Item, NotMeasuredError
from openafm.evaluation.suite.material import Material, spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.evaluation.suite.texts import squad

PREFIX, CONTINUED = 32, 32
"""Tokens given and tokens compared."""
QUESTIONS, SHUFFLES = 5, 4
"""Questions of a group, and the other orders that it is read in."""
HOW = (
    "In this passage of a book a proper name is replaced by [MASK]. Which name is it? Answer with the name alone.\n\n{}"
)


def extracted(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Whether each training document's and each held-out document's beginning is continued word for word."""
    shards = shards_of(subject)
    for split in bench.context.track(("train", "heldout"), "documents continued"):
        tokens, starts = _documents(shards, split)
        chosen = spread(starts, bench.size.items)
        prompts = [tokens[start : start + PREFIX].tolist() for start in chosen]
        for start, prompt, answer in zip(chosen, prompts, subject.continue_tokens(prompts, CONTINUED), strict=True):
            wanted = tokens[start + PREFIX : start + PREFIX + CONTINUED].tolist()
            shown = {"begins": subject.tokenizer.decode(prompt), "answer": answer.text}
            yield Item(split, f"{split}/{start}", float(answer.tokens == wanted), 1.0, shown)


def shards_of(subject: Subject) -> Path:
    """Token shards that a run trained its models on. Raises NotMeasuredError where there are none, or the run imported
    its model."""
    run = subject.path.resolve().parent
    steps = json.loads((run / "run.json").read_text()).get("steps", []) if (run / "run.json").exists() else []
    if steps and not any(step["stage"] == "import_model" for step in steps):
        for index in sorted(run.glob("*/index.json")):
            if json.loads(index.read_text())["vocab_size"] == subject.model.config.vocab_size:
                return index.parent
    raise NotMeasuredError("the model was trained in no run here: nobody can say on what")


def _documents(shards: Path, split: str) -> tuple[np.ndarray, list[int]]:
    """Tokens of a split's largest flow, and where its documents of sufficient length begin."""
    index = json.loads((shards / "index.json").read_text())
    sizes = {flow: size["tokens"] for flow, size in index["splits"].get(split, {}).items()}
    if not sizes or not max(sizes.values()):
        raise NotMeasuredError(f"{shards} holds no {split} text")
    flow = max(sizes, key=lambda name: sizes[name])
    tokens = np.memmap(shards / split / f"{flow}.bin", dtype=index["dtype"], mode="r")
    offsets = np.load(shards / split / f"{flow}.offsets.npy")
    ends = [*offsets[1:].tolist(), len(tokens)]
    long = [int(at) for at, end in zip(offsets.tolist(), ends, strict=False) if end - at > PREFIX + CONTINUED]
    return tokens, [at for at in long if at + PREFIX + CONTINUED <= len(tokens)]


def cloze(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Whether the name left out of each passage is given."""
    lines = [line.split("\t", 1) for line in bench.material.text("cloze").splitlines() if "\t" in line]
    rows = spread(lines, bench.size.items)
    bench.context.report("passages", 0, None)
    chats = [[{"role": "user", "content": HOW.format(passage.strip())}] for _, passage in rows]
    for (name, passage), (answer,) in zip(rows, subject.ask(chats, 12), strict=True):
        given = answer.text.strip().strip("\"'.“”*").casefold()
        yield Item(
            "", passage[:200], float(given == name.strip().casefold()), 1.0, {"wanted": name, "answer": answer.text}
        )


def order(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Nats by which each group's published order is likelier than a shuffled one, by benchmark."""
    for name, groups in bench.context.track(benchmarks(bench.material).items(), "orders"):
        for number, group in enumerate(spread(groups, bench.size.items)):
            rng = random.Random(f"{name}/{number}")
            orders = [group, *(rng.sample(group, len(group)) for _ in range(SHUFFLES))]
            encoded = [subject.tokenizer.encode("\n\n".join(texts))[: subject.context_length - 1] for texts in orders]
            if len(encoded[0]) == subject.context_length - 1:
                raise NotMeasuredError(f"five questions are longer than the model's {subject.context_length} tokens")
            scores = [
                nats for nats, _ in subject.logprobs([([subject.tokenizer.bos_id], tokens) for tokens in encoded])
            ]
            yield Item(name, f"{name}/{number}", scores[0] - sum(scores[1:]) / SHUFFLES)


def benchmarks(material: Material) -> dict[str, list[list[str]]]:
    """Benchmark -> groups of questions in the order they were published in."""
    by_subject: dict[str, list[str]] = {}
    for row in mmlu(material):
        by_subject.setdefault(row["subject"], []).append(f"{row['question']}\n{' / '.join(row['choices'])}")
    (data,) = material.files("human_eval").values()
    rows = jsonl.parse(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, "HumanEval")
    code = [row["prompt"].strip() for row in rows if len(row["prompt"]) < 500]
    asked = [
        [qa["question"] for qa in part["qas"]][:QUESTIONS]
        for article in squad(material)
        for part in article["paragraphs"]
    ]
    return {
        "mmlu": [group for group in by_subject.values() if len(group) == QUESTIONS and max(map(len, group)) < 800],
        "human_eval": [code[at : at + QUESTIONS] for at in range(0, len(code) - QUESTIONS + 1, QUESTIONS)],
        "squad": [group for group in asked if len(group) == QUESTIONS],
    }


TASKS = (
    Task("extracted", "documents continued word for word", extracted, Size(48), Size(500), better="lower"),
    Task("cloze", "names left out of books", cloze, Size(32), Size(400), ("cloze",), better=""),
    Task(
        "order", "published order over shuffled, nats", order, Size(8), Size(57), ("mmlu", "human_eval", "squad"),
        better="lower", unit="nats", guess=0.0,
    ),
)  # fmt: skip
