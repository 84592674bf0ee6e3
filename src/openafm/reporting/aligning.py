"""Chapters of the report on post-training: examples, the reward model, the committee."""

from collections.abc import Iterator
from typing import Any

from openafm.reporting import plots
from openafm.reporting.document import Artifacts, Block, Cell, Chapter, Figure, Table, Text, number, percent

EXAMPLE_STEPS = ("math_data", "tool_data", "code_data", "human_data")


def rate_cell(found: dict[str, Any] | None) -> Cell:
    """A success rate {"rate", "low", "high", "n"} in percent."""
    if not found or found.get("rate") is None:
        return Cell("–")
    return Cell(f"{100 * found['rate']:.1f}", f"{100 * found['low']:.0f}–{100 * found['high']:.0f}")


def examples(artifacts: Artifacts) -> Iterator[Block]:
    """Where the examples of fine-tuning come from, and what part of them people wrote."""
    found = artifacts.json("sft_mixture", "mixture.json") or artifacts.metrics("sft_mixture")
    parts: dict[str, dict[str, int]] = found.get("parts", {})
    reasons = sorted({reason for counts in parts.values() for reason in counts} - {"kept"})
    rows = [[part, *(number(counts.get(r, 0)) for r in ("kept", *reasons))] for part, counts in parts.items()]
    headings = ["part", "kept", *(reason.strip("_").replace("_", " ") for reason in reasons)]
    yield Table("Examples by part: kept, or left out for the first of these reasons.", headings, rows)
    splits = {name: found[name] for name in ("train", "validation", "heldout") if name in found}
    splits |= {f"arm {name}": shares for name, shares in found.get("arms", {}).items()}
    rows = [
        [
            name, number(s["examples"]), percent(s["human_share"]), percent(s["synthetic_share"]),
            percent(s["human_share_of_characters"]),
        ]
        for name, s in splits.items()
    ]  # fmt: skip
    yield Table(
        "Human examples are package synopses and mail subjects that people wrote; synthetic ones are made by programs "
        "and by the writer model and checked by programs. Splits go by what a problem asks, not by its wording.",
        ["split", "examples", "human", "synthetic", "human, by characters"], rows,
    )  # fmt: skip
    facts = [[f"{step}: {name}", value] for step in EXAMPLE_STEPS for name, value in artifacts.facts(step)]
    if facts:
        yield Table("What the steps that made them report.", ["measure", "value"], facts)


def finetuning(artifacts: Artifacts) -> Iterator[Block]:
    """Loss curves, the mixture arms and the choice of a checkpoint."""
    found = {}
    for step in ("sft", "sft_control", "rejection"):
        records = artifacts.lines(step, "metrics.jsonl")
        if len(records) > 1:
            found[step] = plots.Line([r["tokens"] / 1000 for r in records], [r["loss"] for r in records])
    if found:
        svg = plots.lines(found, "tokens of the stage, thousands", "nats an answer token", name="sft")
        yield Figure("Training loss on the answers.", svg)
    arms = artifacts.metrics("sft_arms").get("arms", {})
    if arms:
        rows = [[name, rate_cell(arm), number(arm.get("n"))] for name, arm in arms.items()]
        chosen = artifacts.metrics("sft_arms").get("arm")
        caption = (
            f"Mixture arms trained for the same few tokens: validation problems answered rightly. Chosen: {chosen}."
        )
        yield Table(caption, ["arm", "right %", "n"], rows)
    points = artifacts.metrics("sft_best").get("checkpoints", {})
    if points:
        rows = [
            [name, number(p["reward"], 3), rate_cell(p["best_of_n"]), rate_cell(p["single"])]
            for name, p in points.items()
        ]
        chosen = artifacts.metrics("sft_best").get("checkpoint")
        caption = (
            "Checkpoints by the mean reward of the best of several answers, which decides; beside it, how often that "
            f"answer is right, and how often a single one is. Kept: {chosen}."
        )
        yield Table(caption, ["checkpoint", "reward", "best of n, right %", "single, right %"], rows)


def reward_model(artifacts: Artifacts) -> Iterator[Block]:
    """Accuracy by strength, and of the grades."""
    measured = artifacts.json("reward", "heldout.json") or artifacts.metrics("reward").get("heldout", {})
    strengths = measured.get("by_strength", {})
    values = {
        f"{name} (n = {found['n']})": (100 * found["rate"], 100 * found["low"], 100 * found["high"])
        for name, found in {**strengths, "all": measured.get("accuracy", {})}.items()
        if found.get("rate") is not None
    }
    svg = plots.points(values, "pairs ranked rightly, %", name="reward", mark=50)
    yield Figure(
        "Held-out pairs that the reward model ranks rightly, by strength, with Wilson's 95% intervals; chance is 50%.",
        svg,
    )
    rows = [
        [name, number(100 * found["target"], 0), number(100 * found["expected"], 1)]
        for name, found in strengths.items()
        if found.get("rate") is not None
    ]
    yield Table(
        "The probability that the preferred answer is better: the target it was trained towards, and what it says on "
        "average.", ["strength", "target %", "reward model %"], rows,
    )  # fmt: skip
    commonest = measured.get("commonest_grade", {})
    rows = [
        [name, rate_cell(found), number(found["n"]), number(100 * commonest[name], 1) if name in commonest else "–"]
        for name, found in measured.get("grades", {}).items()
    ]
    headings = ["dimension", "right %", "n", "always the commonest %"]
    yield Table("Grades (three each) on held-out answers, beside guessing the commonest grade.", headings, rows)
    if mapping := artifacts.metrics("preferences").get("mapping"):
        noise = artifacts.manifest("preferences").get("config", {}).get("label_noise")
        told = f" Labels are swapped in {100 * noise:g}% of the training pairs, in no held-out pair." if noise else ""
        yield Text(f"Strengths come from independent programmatic checks: {mapping}.{told}")
    if bias := measured.get("length_bias", {}):
        yield Text(
            f"Correlation of reward with answer length: {number(bias.get('reward'))}; of the labels themselves with "
            f"length: {number(bias.get('label'))}."
        )


def committee(artifacts: Artifacts) -> Iterator[Block]:
    """The round's members beside the control."""
    found = artifacts.json("committee", "committee.json") or {"best": "", "members": {}}
    rows = []
    for name, splits in found["members"].items():
        held_out, validation = splits.get("heldout", {}), splits.get("validation", {})
        label = f"{name} (best)" if name == found["best"] else name
        rows.append(
            [
                label, rate_cell(held_out), rate_cell(validation), number(held_out.get("n")),
                number(held_out.get("reward"), 3), number(held_out.get("tokens"), 1),
            ]
        )  # fmt: skip
    yield Table(
        "One committee round: every member starts from the SFT model and learns from the same sampled answers. "
        "Validation problems picked the best; held-out problems are reported only. The control is SFT continued for as "
        "many optimizer steps. Greedy answers, Wilson's 95% intervals.",
        ["member", "held-out %", "validation %", "n", "reward", "tokens an answer"], rows,
    )  # fmt: skip
    tasks = sorted(
        {task for splits in found["members"].values() for task in splits.get("heldout", {}).get("tasks", {})}
    )
    if tasks:
        rows = [
            [task, *(rate_cell(s.get("heldout", {}).get("tasks", {}).get(task)) for s in found["members"].values())]
            for task in tasks
        ]
        yield Table("The same held-out answers by task, % right.", ["task", *found["members"]], rows)


CHAPTERS = (
    Chapter("Examples for fine-tuning", ("sft_mixture",), examples),
    Chapter("Fine-tuning", ("sft",), finetuning),
    Chapter("Reward model", ("reward",), reward_model),
    Chapter("Committee round", ("committee",), committee),
)
