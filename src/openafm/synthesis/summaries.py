"""Training data of the summarisation adapter (step `summaries`): short texts with one-line summaries.

AFM's worked example of a task adapter (arXiv 2407.21075, section 5.2) trains on summaries that the server model wrote
and that were filtered. Here people wrote most of them (synopses, mail subjects); the writer model, standing in for
the server model, may add its own, kept when short and made of the text's words; and messages are made by rule
(`notices`), whose summaries are known.
"""

import random
import re
from pathlib import Path

from openafm import jsonl
from openafm.scoring import checks
from openafm.stage import Config, Context, Metrics
from openafm.synthesis.human import SUMMARISED, is_held_out, summarised, summary_example
from openafm.synthesis.items import Collected, finish
from openafm.synthesis.notices import notices
from openafm.synthesis.tasks import Example
from openafm.synthesis.writer import Writer, WriterConfig, line


class SummariesConfig(Config):
    """How many summaries, and how long text and summary may be."""

    train: int = 1200
    """Most training examples."""
    heldout: int = 100
    """Most held-out examples, of pages and packages that no training example is from."""
    max_text_words: int = 48
    """Longest text in words."""
    max_words: int = 14
    """Longest summary in words."""
    min_words: int = 2
    """Shortest summary in words."""
    made: int = 100
    """Messages made by rule, with their summaries."""
    written: int = 6
    """Summaries that the writer model adds; 0 leaves the model out."""
    writer: WriterConfig | None = None
    """A writer other than the sources' model."""


def _reason(config: SummariesConfig, example: Example) -> str | None:
    """Why a summary is not fit to learn from, or None: half its words must be the text's."""
    answer, source = example["answer"], example["check"]["source"]
    words = len(answer.split())
    if words < config.min_words:
        return "too_short"
    if words > config.max_words:
        return "too_long"
    if answer.casefold().rstrip(".") == source.casefold().rstrip("."):
        return "copy_of_text"
    return None if checks.faithful(with_initials(source, answer), answer) >= 0.5 else "not_from_the_text"


def with_initials(source: str, answer: str) -> str:
    """A text and those words of the answer that say the same: initials of its words (cli), or words of its initials.

    Runs of three to five words count, hyphens parting words: shorter initials are met by chance.
    """
    told, said = (re.findall(r"[^\W_]+", text.casefold()) for text in (source, answer))
    same: list[str] = []
    for size in (3, 4, 5):
        runs = {"".join(word[0] for word in part) for part in _runs(told, size)}
        same += [word for word in said if word in runs]
        same += [word for part in _runs(said, size) if "".join(w[0] for w in part) in told for word in part]
    return " ".join([source, *same])


def _runs(words: list[str], size: int) -> list[list[str]]:
    return [words[start : start + size] for start in range(len(words) - size + 1)]


def _written(config: SummariesConfig, writer: Writer, examples: list[Example]) -> list[Example]:
    """The writer's summary in the place of the person's."""
    rows = [{"text": example["check"]["source"], "words": config.max_words} for example in examples]
    texts = writer.write("summary", rows, max_tokens=32, temperature=0.3)
    changed = [{"answer": line(text[0]), "origin": "synthetic"} for text in texts]
    return [
        {**example, **new, "id": f"written-{example['id']}", "lineage": f"writer-summary/{example['lineage']}"}
        for example, new in zip(examples, changed, strict=True)
    ]


def summaries(config: SummariesConfig, context: Context, *, sources: Path) -> Metrics:
    """Make `examples.jsonl` (training), `heldout.jsonl` and `rejected.jsonl`."""
    collected, held = Collected(), Collected()
    pool: list[Example] = []
    for kind in context.track(SUMMARISED, "summaries"):
        for row in summarised(sources, kind):
            example = summary_example(row, kind, config.max_text_words, config.max_words)
            example["messages"] = [{"role": "user", "content": f"Sum up: {example['check']['source']}"}]
            reason = _reason(config, example)
            (held if is_held_out(row, context.seed) else collected).judge(example, reason)
            if not is_held_out(row, context.seed) and len(row["text"].split()) > 8:
                pool.append(example)
    rng = random.Random(f"{context.seed}/summaries")
    for rows in (collected.kept, held.kept, pool):
        rng.shuffle(rows)
    del collected.kept[config.train :], held.kept[config.heldout :]
    for example in notices(config.made, config.max_text_words, context.seed):
        collected.judge(example, _reason(config, example))
    writer = Writer.open(sources, context, config.written > 0, config.writer)
    if writer.present:
        for example in _written(config, writer, pool[: config.written]):
            collected.judge(example, _reason(config, example))
    jsonl.write(context.out / "heldout.jsonl", held.kept)
    return {**finish(context, collected, writer.used), "heldout": len(held.kept)}
