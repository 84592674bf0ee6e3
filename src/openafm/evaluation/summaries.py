"""Summaries side by side (step `table` of the recipe summaries): first sentence, base, package, recovered, adapters.

Every model answers the same held-out texts, greedily. Models without a task adapter get three prompts and keep the one
that scores best on these very texts: that flatters them, not the adapters, which have one. ROUGE (Lin, 2004) is against
people's summaries; a judge says which of two summaries is better, asked twice with their places swapped, so that its
liking for a place cancels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from openafm import jsonl
from openafm.compression.task_adapter import lead_1
from openafm.engine import Engine, open_engine
from openafm.engine.package import open_package
from openafm.sampling.sampler import EngineSampler, Prompt, TorchSampler
from openafm.scoring import intervals
from openafm.scoring.judges import compare
from openafm.scoring.rouge import rouge_l, rouge_n
from openafm.stage import Config, Context, Metrics
from openafm.synthesis.ready.tasks import Summaries
from openafm.synthesis.writer import line

RESULT = "summaries.json"
MEASURES: dict[str, Callable[[str, str], float]] = {
    "rouge_1": lambda text, reference: rouge_n(text, reference, 1),
    "rouge_2": lambda text, reference: rouge_n(text, reference, 2),
    "rouge_l": rouge_l,
}
BASELINE = "quantized"
QUESTION = "Summarize this in one line:"
CHECKS = ("people's", "another text's")
"""Summaries that a judge worth its name prefers, and refuses."""


class SummaryTableConfig(Config):
    """How long answers may be, and how many are judged."""

    max_tokens: int = 32
    judged: int = 24
    """Held-out texts, of all kinds, that the judge reads."""
    judged_words: int = 90
    """Longest text that the judge reads."""


Example = dict[str, Any]
Answers = dict[str, list[str]]


def summary_table(
    config: SummaryTableConfig,
    context: Context,
    *,
    base: Path,
    package: Path,
    adapters: dict[str, Path],
    data: Path,
    judge: Path | None = None,
) -> Metrics:
    """Compare on `heldout.jsonl` of the folder `data`; writes `summaries.json` and `answers.jsonl`.

    `base` is a model folder, and `judge` another, else the base judges; `package` carries the recovery adapter; each of
    `adapters` is a package with one adapter more.
    """
    torch.set_num_threads(context.hardware.threads)
    heldout, shown = jsonl.read(data / "heldout.jsonl"), jsonl.read(data / "examples.jsonl")
    answers: Answers = {"lead-1": [lead_1(example) for example in heldout]}
    prompts: dict[str, str] = {}
    quantized = open_engine(package)
    plain: list[tuple[str, Engine, str | None]] = [
        ("base", open_engine(base), None), (BASELINE, quantized, None), ("recovered", quantized, "recovery"),
    ]  # fmt: skip
    for name, engine, adapter in context.track(plain, "three prompts each"):
        found = {key: _answer(engine, adapter, asked, config) for key, asked in _prompts(heldout, shown).items()}
        prompts[name] = max(found, key=lambda key: _mean(found[key], heldout))
        answers[name] = found[prompts[name]]
    for label, folder in context.track(adapters.items(), "adapters"):
        new = set(open_package(folder).adapters.names()) - set(open_package(package).adapters.names())
        if len(new) != 1:
            raise ValueError(f"{folder} has {len(new)} adapters that {package} has not: give a package with one more")
        answers[f"adapter, {label}"] = _answer(open_engine(folder), new.pop(), _as_trained(heldout), config)
    rows = [_row(name, answers, heldout, context.seed) | {"prompt": prompts.get(name)} for name in answers]
    judged = _judge(config, context, judge or base, heldout, answers)
    result = {
        "texts": {kind: sum(e["kind"] == kind for e in heldout) for kind in sorted({e["kind"] for e in heldout})},
        "sources": len({example["source"] for example in heldout}),
        "judged": config.judged,
        "rows": [row | {"judge": judged.get(row["name"])} for row in rows],
        "judge_checks": {name: judged[name] for name in CHECKS},
    }
    (context.out / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    jsonl.write(
        context.out / "answers.jsonl",
        (
            {"id": e["id"], "reference": e["answer"], **{n: answers[n][i] for n in answers}}
            for i, e in enumerate(heldout)
        ),
    )
    told = ", ".join(f"{row['name']} {row['all']['rouge_l']:.3f}" for row in rows)
    return {"headline": f"ROUGE-L: {told}", **result}


def _as_trained(examples: Sequence[Example]) -> list[Prompt]:
    return [example["messages"] for example in examples]


def _prompts(heldout: Sequence[Example], shown: Sequence[Example]) -> dict[str, list[Prompt]]:
    """The task's own prompt; a plainer one; and the task's after two solved examples of other packages."""
    kinds = {example["kind"]: example for example in reversed(shown) if len(_text(example).split()) <= 60}
    before = [
        turn
        for _, example in sorted(kinds.items())
        for turn in (*example["messages"], {"role": "assistant", "content": example["answer"]})
    ]
    plainly = "Write a summary of at most 12 words. Answer with the summary only, in one line."
    return {
        "task": _as_trained(heldout),
        "plain": [[{"role": "user", "content": f"{_text(example)}\n\n{plainly}"}] for example in heldout],
        "examples": [[*before, *example["messages"]] for example in heldout],
    }


def _text(example: Example) -> str:
    """The laid out text without the instruction."""
    content: str = example["messages"][-1]["content"]
    return content.removeprefix(Summaries.instruction)


def _answer(engine: Engine, adapter: str | None, prompts: Sequence[Prompt], config: SummaryTableConfig) -> list[str]:
    """Greedy answers; of each the first line, as a reader of summaries would show it."""
    made = EngineSampler(engine, adapter).sample(prompts, max_tokens=config.max_tokens, temperature=0.0)
    return [line(completions[0].text) for completions in made]


def _mean(texts: Sequence[str], heldout: Sequence[Example]) -> float:
    return float(np.mean([rouge_l(text, example["answer"]) for text, example in zip(texts, heldout, strict=True)]))


def _row(name: str, answers: Answers, heldout: Sequence[Example], seed: int) -> dict[str, Any]:
    """A line of the table: ROUGE with intervals over all texts and by kind, and the gain over the baseline, paired."""
    row: dict[str, Any] = {"name": name, "words": round(float(np.mean([len(t.split()) for t in answers[name]])), 2)}
    for kind in ("all", *sorted({example["kind"] for example in heldout})):
        places = [i for i, example in enumerate(heldout) if kind in ("all", example["kind"])]
        figures: dict[str, Any] = {}
        for measure, score in MEASURES.items():
            ours, theirs = (
                np.array([score(answers[who][i], heldout[i]["answer"]) for i in places]) for who in (name, BASELINE)
            )
            figures[measure] = round(float(ours.mean()), 4)
            figures[f"{measure}_interval"] = _rounded(intervals.bootstrap(ours, seed=seed))
            if measure == "rouge_l" and name != BASELINE:
                figures |= gain(ours, theirs, seed)
        row[kind] = figures
    return row


def gain(ours: np.ndarray, theirs: np.ndarray, seed: int) -> dict[str, Any]:
    """mean(ours) / mean(theirs) - 1 with its paired 95% bootstrap interval; None where theirs is all zero."""

    def ratio(pairs: np.ndarray) -> float:
        """mean(ours) / mean(theirs) - 1 of some texts, `(texts, 2)`."""
        return float(pairs[:, 0].mean() / max(pairs[:, 1].mean(), 1e-12) - 1)

    if not theirs.any():
        return {"gain": None, "gain_interval": None}
    pairs = np.stack([ours, theirs], axis=1)
    return {"gain": round(ratio(pairs), 4), "gain_interval": _rounded(intervals.bootstrap(pairs, ratio, seed=seed))}


def _rounded(ends: tuple[float, float]) -> list[float]:
    return [round(end, 4) for end in ends]


def _judge(
    config: SummaryTableConfig,
    context: Context,
    folder: Path,
    heldout: Sequence[Example],
    answers: Mapping[str, list[str]],
) -> dict[str, Any]:
    """How often each line is preferred to the baseline, and how often both orders of the two agree.

    People's summaries and those of other texts are judged too: they say what the judge's word is worth.
    """
    places = np.linspace(0, len(heldout) - 1, min(config.judged, len(heldout))).round().astype(int).tolist()
    references = [example["answer"] for example in heldout]
    contestants = {name: texts for name, texts in answers.items() if name != BASELINE}
    contestants |= dict(zip(CHECKS, (references, references[1:] + references[:1]), strict=True))
    dtype = torch.bfloat16 if context.hardware.precision == "bfloat16" else torch.float32
    judge = TorchSampler.load(folder, dtype, batch=8)
    texts = [f"{QUESTION} {' '.join(_text(heldout[i]).split()[: config.judged_words])}" for i in places]
    result = {}
    for name, made in context.track(contestants.items(), "judging"):
        rows = [(text, made[i], answers[BASELINE][i]) for i, text in zip(places, texts, strict=True)]
        found = compare(judge, rows)
        won = [verdict.preferred for verdict in found]
        result[name] = {
            "preferred": round(float(np.mean(won)), 4),
            "preferred_interval": _rounded(intervals.bootstrap(won, seed=context.seed)),
            "agreed": round(float(np.mean([verdict.consistent for verdict in found])), 4),
        }
    return result


def render(folder: Path) -> Table:
    """The table for the terminal."""
    result = json.loads((folder / RESULT).read_text())
    kinds = ", ".join(f"{count} {kind}" for kind, count in result["texts"].items())
    texts = f"{kinds} of {result['sources']} held-out source packages"
    title = f"ROUGE, {texts} (95% intervals; gain and judge over {BASELINE})"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "prompt", "-1", "-2", "-L", *(f"-L {kind}" for kind in result["texts"]), "gain %", "judge %"):
        table.add_column(column, justify="left" if column in ("", "prompt") else "right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(*cells(row, list(result["texts"])))
    for name, verdict in result["judge_checks"].items():
        table.add_row(f"{name} (check)", *[""] * (5 + len(result["texts"])), _share(verdict))
    return table


def cells(row: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    """A line as printed: prompt, ROUGE-1, -2 and -L with intervals, -L by kind, gain and judge in per cent."""
    found = row["all"]
    scores = [
        "{:.3f} {:.3f}–{:.3f}".format(found[measure], *found[f"{measure}_interval"])
        if measure == "rouge_l"
        else f"{found[measure]:.3f}"
        for measure in MEASURES
    ]
    gained = found.get("gain")
    told = (
        ""
        if gained is None
        else "{:+.0f} {:+.0f}–{:+.0f}".format(*(100 * x for x in (gained, *found["gain_interval"])))
    )
    by_kind = [f"{row[kind]['rouge_l']:.3f}" for kind in kinds]
    return [row["name"], row.get("prompt") or "", *scores, *by_kind, told, _share(row["judge"])]


def _share(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return ""
    return "{:.0f} {:.0f}–{:.0f}".format(*(100 * x for x in (verdict["preferred"], *verdict["preferred_interval"])))
