"""Chapters of the report on post-training: examples, the reward model, the committee."""

from collections.abc import Iterator, Sequence
from typing import Any

from openafm.reporting import plots
from openafm.reporting.document import (
    Artifacts,
    Block,
    Chapter,
    Figure,
    Rows,
    Table,
    Text,
    last,
    number,
    percent,
    share_cell,
)
from openafm.scoring import intervals
from openafm.synthesis.items import MAKERS


def mixture_of(artifacts: Artifacts) -> dict[str, Any]:
    """The last mixture of examples; empty where there is none."""
    step = last(artifacts.of("sft_mixture"))
    return (artifacts.json(step, "mixture.json") or artifacts.metrics(step)) if step else {}


def examples(artifacts: Artifacts) -> Iterator[Block]:
    """Where the examples of fine-tuning come from, and what part of them people wrote."""
    found = mixture_of(artifacts)
    parts: dict[str, dict[str, int]] = found.get("parts", {})
    reasons = sorted({reason for counts in parts.values() for reason in counts} - {"kept"})
    rows = [[part, *(number(counts.get(r, 0)) for r in ("kept", *reasons))] for part, counts in parts.items()]
    headings = ["part", "kept", *(reason.strip("_").replace("_", " ") for reason in reasons)]
    yield Table("Examples by part: kept, or left out for the first of these reasons.", headings, rows)
    splits: dict[str, dict[str, Any]] = {
        name: found[name] for name in ("train", "validation", "heldout") if name in found
    }
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
    yields: Rows = [
        [f"{step}: {kind}", number(n["made"]), number(n["kept"]), percent(n["kept"] / n["made"] if n["made"] else None)]
        for step in artifacts.of(*MAKERS)
        for kind, n in artifacts.metrics(step).get("yield", {}).items()
    ]
    yield Table(
        "What each way of making examples yields: made, and kept once programs have checked them. Kinds that begin "
        "with `writer` are written by SmolLM2-135M-Instruct, which stands in for the server-side model.",
        ["step and kind", "made", "kept", "share"], yields,
    )  # fmt: skip


def finetuning(artifacts: Artifacts) -> Iterator[Block]:
    """Loss curves, the mixture arms and the choice of a checkpoint."""
    found = {}
    for step in artifacts.of("sft", "rejection"):
        records = artifacts.lines(step, "metrics.jsonl")
        if len(records) > 1:
            found[step] = plots.Line([r["tokens"] / 1000 for r in records], [r["loss"] for r in records])
    if found:
        alt = "; ".join(f"{step} from {line.y[0]:.2f} to {line.y[-1]:.2f} nats" for step, line in found.items())
        axis = "tokens of the stage, thousands"
        svg = plots.lines(found, axis, "nats a token", name="sft", alt=alt)
        yield Figure("Training loss on the answers, nats a token.", svg)
    for step in artifacts.of("sft_arms"):
        metrics = artifacts.metrics(step)
        yield Table(
            "Mixture arms trained for the same few tokens: validation problems answered rightly, with Wilson's 95% "
            f"intervals. Chosen: {metrics.get('arm')}.", ["arm", "right, %", "n"],
            [[name, share_cell(arm), number(arm.get("n"))] for name, arm in metrics.get("arms", {}).items()],
        )  # fmt: skip
    for step in artifacts.of("sft_best"):
        metrics = artifacts.metrics(step)
        yield Table(
            "Checkpoints by the mean reward of the best of several answers, which decides; beside it, how often that "
            f"answer is right, and how often a single one is. Kept: {metrics.get('checkpoint')}.",
            ["checkpoint", "reward", "best of n right, %", "single right, %"],
            [[name, number(p["reward"], 3), share_cell(p["best_of_n"]), share_cell(p["single"])]
             for name, p in metrics.get("checkpoints", {}).items()],
        )  # fmt: skip


def reward_models(artifacts: Artifacts) -> Iterator[Block]:
    """Accuracy by strength and of the grades, of each reward model; how far labellers agree."""
    for step in artifacts.of("labels"):
        judges = artifacts.metrics(step).get("judges", {})
        by = ", ".join(f"{name} {n}" for name, n in judges.get("labels", {}).items())
        yield Table(
            f"{step}: {number(judges.get('pairs'))} pairs labelled by {by}; "
            f"{number(judges.get('pairs_of_several'))} by several. "
            "Krippendorff's alpha between them: 1 is full agreement, 0 chance, – nothing to compare.",
            ["what", "alpha"], [[what, number(value)] for what, value in judges.get("alpha", {}).items()],
        )  # fmt: skip
    steps = artifacts.of("reward")
    for index, step in enumerate(steps):
        yield from _reward_model(artifacts, step, index, f"{step}: " if len(steps) > 1 else "")


def _reward_model(artifacts: Artifacts, step: str, index: int, title: str) -> Iterator[Block]:
    measured = artifacts.json(step, "heldout.json") or artifacts.metrics(step).get("heldout", {})
    strengths = {name: f for name, f in measured.get("by_strength", {}).items() if f.get("rate") is not None}
    dots = {
        f"{name} (n = {found['n']})": plots.Dot(100 * found["rate"], 100 * found["low"], 100 * found["high"])
        for name, found in {**strengths, "all": measured.get("accuracy", {})}.items()
        if found.get("rate") is not None
    }
    alt = "; ".join(f"{name}: {dot.value:.0f}%" for name, dot in dots.items())
    yield Figure(
        f"{title}Held-out pairs that the reward model ranks rightly, by strength of the preference, with Wilson's 95% "
        "intervals. Dotted: chance, 50%.",
        plots.points(dots, "pairs ranked rightly, %", name=f"reward-{index}", alt=alt, mark=50),
    )
    yield Table(
        f"{title}The probability that the preferred answer is better: the target it was trained towards, and what it "
        "says on average.", ["strength", "target, %", "reward model, %"],
        [[n, number(100 * f["target"], 0), number(100 * f["expected"], 1)] for n, f in strengths.items()],
    )  # fmt: skip
    yield from _calibration(measured.get("calibration", {}), index, title)
    commonest = measured.get("commonest_grade", {})
    rows: Rows = [
        [name, share_cell(found), number(found["n"]), number(100 * commonest[name], 1) if name in commonest else "–"]
        for name, found in measured.get("grades", {}).items()
    ]
    headings = ["dimension", "right, %", "n", "always the commonest, %"]
    yield Table(f"{title}Grades (three each) on held-out answers, beside guessing the commonest.", headings, rows)
    read = artifacts.manifest(step).get("inputs", {})
    pairs = [artifacts.input(step, name) for name in read if name.partition(".")[0] == "preferences"]
    programs = next((made for made in pairs if artifacts.metrics(made).get("mapping")), None)
    if mapping := artifacts.metrics(programs).get("mapping"):
        noise = artifacts.manifest(programs).get("config", {}).get("label_noise")
        told = f" Labels are swapped in {100 * noise:g}% of the training pairs, in no held-out pair." if noise else ""
        yield Text(f"Strengths come from independent programmatic checks, not from people: {mapping}.{told}")
    if bias := measured.get("length_bias", {}):
        yield Text(
            f"Correlation of reward with answer length: {number(bias.get('reward'))}; of the labels themselves with "
            f"length: {number(bias.get('label'))}."
        )


def _calibration(found: dict[str, Any], index: int, title: str) -> Iterator[Figure]:
    curve = found.get("curve", [])
    if len(curve) < 2:
        return
    lines = {
        "reward model": plots.Line(
            [100 * row["probability"] for row in curve], [100 * row["rate"] for row in curve],
            [100 * row["low"] for row in curve], [100 * row["high"] for row in curve],
        ),
        "as probable as it says": plots.Line([50.0, 100.0], [50.0, 100.0]),
    }  # fmt: skip
    alt = "; ".join(f"says {100 * row['probability']:.0f}%, right {100 * row['rate']:.0f}%" for row in curve)
    yield Figure(
        f"{title}How far its probabilities can be believed: the probability it gives the side that it prefers, and how "
        f"often that side is the preferred one, with Wilson's 95% intervals. Expected calibration error: "
        f"{number(100 * found['error'], 1)} points.",
        plots.lines(lines, "probability, %", "right, %", name=f"calibration-{index}", alt=alt, height=2.2),
    )


def rounds_of(artifacts: Artifacts) -> list[tuple[str, str, dict[str, Any]]]:
    """Each committee round in order: its step, the best member by validation, members (and the control) by name."""
    found = [(step, artifacts.json(step, "committee.json") or {}) for step in artifacts.of("committee")]
    return [(step, table["best"], table["members"]) for step, table in found if table.get("members")]


def is_control(member: str) -> bool:
    """Whether a line of a committee's table is its control: measured beside the members, never picked."""
    return member.startswith("control")


def committee(artifacts: Artifacts) -> Iterator[Block]:
    """Every round's members beside its control."""
    rounds = rounds_of(artifacts)
    dots = {}
    for number_, (_, best, members) in enumerate(rounds, 1):
        for name, splits in members.items():
            if (found := splits.get("heldout", {})).get("rate") is not None:
                label = f"{f'round {number_}: ' if len(rounds) > 1 else ''}{name}{' (best)' if name == best else ''}"
                dots[label] = plots.Dot(100 * found["rate"], 100 * found["low"], 100 * found["high"], is_control(name))
    if dots:
        alt = "; ".join(f"{name}: {dot.value:.1f}%" for name, dot in dots.items())
        yield Figure(
            "Held-out problems answered rightly, as programs verify it, with Wilson's 95% intervals. “Best” was picked "
            "on validation problems. The diamond is the control: SFT continued for as many optimizer steps.",
            plots.points(dots, "verified right, %", name="committee", alt=alt),
        )
    yield from _rewards(artifacts)
    for step, best, members in rounds:
        yield from _round(artifacts, step, best, members)
    yield _lineage(artifacts, rounds)
    yield from _methods(artifacts)
    yield _rollouts(artifacts)
    yield from _mdloo(artifacts)


def _rewards(artifacts: Artifacts) -> Iterator[Figure]:
    """Mean reward of what the members of each round are sampled to answer."""
    dots: dict[str, plots.Dot] = {}
    for step in artifacts.of("rollouts"):
        rewards: dict[str, list[float]] = {}
        for row in artifacts.lines(step, "rollouts.jsonl"):
            made = [completion["reward"] for completion in row["completions"]]
            rewards.setdefault(row["member"], []).append(sum(made) / len(made))
        for member, values in rewards.items():
            low, high = intervals.mean(values) if len(values) > 1 else (None, None)
            dots[f"{step}: {member}"] = plots.Dot(sum(values) / len(values), low, high)
    if dots:
        alt = "; ".join(f"{name}: {dot.value:.2f}" for name, dot in dots.items())
        yield Figure(
            "Reward per committee round: mean reward of the answers sampled from each member on training problems, "
            "with 95% t intervals over problems. Each round has a reward model of its own, so levels compare within a "
            "round.",
            plots.points(dots, "mean reward (the reward model's unit)", name="rewards", alt=alt),
        )


def _lineage(artifacts: Artifacts, rounds: Sequence[tuple[str, str, dict[str, Any]]]) -> Table:
    """From which weights and data each member came."""
    rows: Rows = []
    for index, (step, best, members) in enumerate(rounds, 1):
        for name in members:
            made_by = artifacts.input(step, f"members.{name}") or (
                artifacts.input(step, "control") if is_control(name) else None
            )
            if made_by is None or made_by not in artifacts.folders:
                continue
            manifest = artifacts.manifest(made_by)
            read = {what: given["step"] for what, given in manifest.get("inputs", {}).items() if given["step"]}
            start = read.pop("model", read.pop("snapshots", "–"))
            learned = ", ".join(f"{what}: {where}" for what, where in read.items()) or "–"
            shown = f"{f'round {index}: ' if len(rounds) > 1 else ''}{name}{' (best)' if name == best else ''}"
            rows.append([shown, made_by, str(manifest.get("stage", "–")), start, learned])
    return Table(
        "Lineage of the members: the step and stage that made each, the weights it began from, and what else it read.",
        ["member", "made by", "stage", "weights from", "read"], rows, 5,
    )  # fmt: skip


def _round(artifacts: Artifacts, step: str, best: str, members: dict[str, Any]) -> Iterator[Table]:
    rows: Rows = []
    for name, splits in members.items():
        held_out, validation = splits.get("heldout", {}), splits.get("validation", {})
        made_by = artifacts.input(step, f"members.{name}") or (
            artifacts.input(step, "control") if is_control(name) else ""
        )
        rows.append(
            [
                f"{name} (best)" if name == best else name, share_cell(held_out), share_cell(validation),
                number(held_out.get("n")), number(held_out.get("reward"), 3), number(held_out.get("tokens"), 1),
                *([share_cell(held_out["sampled"])] if "sampled" in held_out else []), made_by or "–",
            ]
        )  # fmt: skip
    sampled = ["sampled right, %"] if all("sampled" in s.get("heldout", {}) for s in members.values()) else []
    yield Table(
        f"The round of step {step}. Validation problems picked the best; held-out problems are only reported. Greedy "
        "answers, Wilson's 95% intervals, mean reward and length of an answer.",
        ["member", "held-out right, %", "validation right, %", "n", "reward", "tokens", *sampled, "made by"], rows,
    )  # fmt: skip
    tasks = sorted({task for splits in members.values() for task in splits.get("heldout", {}).get("tasks", {})})
    yield Table(
        f"The same held-out answers of {step} by task, right in %.", ["task", *members],
        [[task, *(share_cell(s.get("heldout", {}).get("tasks", {}).get(task)) for s in members.values())]
         for task in tasks],
    )  # fmt: skip


def _methods(artifacts: Artifacts) -> Iterator[Block]:
    """Models side by side on the same held-out problems, with what each took."""
    for step in artifacts.of("methods"):
        found = artifacts.json(step, "methods.json") or {}
        dots = {name: plots.Dot(100 * f["rate"], 100 * f["low"], 100 * f["high"]) for name, f in found.items()}
        alt = "; ".join(f"{name}: {dot.value:.1f}%" for name, dot in dots.items())
        yield Figure(
            f"{step}: held-out problems answered rightly by greedy decoding, with Wilson's 95% intervals.",
            plots.points(dots, "verified right, %", name=f"methods-{step}", alt=alt),
        )
        rows: Rows = []
        for name, row in found.items():
            made_by = artifacts.input(step, f"members.{name}") or ""
            seconds = artifacts.manifest(made_by).get("times", {}).get("seconds") if artifacts.run else None
            rows.append(
                [name, share_cell(row), share_cell(row.get("sampled")), number(row["n"]), number(row["tokens"], 1),
                 number(artifacts.metrics(made_by).get("steps")), number(seconds, 0), made_by or "–"]
            )  # fmt: skip
        yield Table(
            f"{step}: the same models. Steps are optimizer steps of the step that made the model; seconds its time.",
            ["model", "greedy right, %", "sampled right, %", "n", "tokens", "steps", "seconds", "made by"], rows,
        )  # fmt: skip
        tasks = sorted({task for row in found.values() for task in row["tasks"]})
        yield Table(
            f"{step}: by task, right in %.", ["model", *tasks],
            [[name, *(share_cell(row["tasks"].get(task)) for task in tasks)] for name, row in found.items()],
        )  # fmt: skip


def _rollouts(artifacts: Artifacts) -> Table:
    """What the members that a round samples from answered."""
    rows: Rows = [
        [step, name, number(found.get("reward"), 3), share_cell(found), number(found.get("n"))]
        for step in artifacts.of("rollouts")
        for name, found in artifacts.metrics(step).get("members", {}).items()
    ]
    return Table(
        "The answers that members learn from, sampled from all models so far on training problems.",
        ["step", "sampled from", "mean reward", "verified right, %", "answers"], rows, 2,
    )  # fmt: skip


CHECKS = {
    "kl_reference": ("KL to the SFT model", "nats an answer"),
    "kl_last": ("KL to the policy that drew the answers, after the iteration's steps", "nats an answer"),
    "entropy": ("Entropy of the policy", "nats a token"),
    "tokens": ("Length of the answers", "tokens"),
}
"""What an RL step logs of each iteration beside its reward."""


def _mdloo(artifacts: Artifacts) -> Iterator[Figure]:
    found = {step: artifacts.lines(step, "iterations.jsonl") for step in artifacts.of("mdloo")}
    curves = {
        step: plots.Line([row["iteration"] for row in rows], [row["reward"] for row in rows])
        for step, rows in found.items()
        if len(rows) > 1
    }
    if curves:
        ends = {step: found[step][-1].get("kl_reference") for step in curves}
        told = "; ".join(f"{step} ends {number(kl, 3)} nats from where it began" for step, kl in ends.items())
        alt = "; ".join(f"{step} from {line.y[0]:.2f} to {line.y[-1]:.2f}" for step, line in curves.items())
        yield Figure(
            "Reinforcement learning (MDLOO, unless the step is named for another): mean reward of the sampled answers "
            f"by iteration (KL to the SFT model: {told}). Reward is what it is trained on, so a rise alone shows no "
            "better answers.",
            plots.lines(curves, "iteration", "mean reward", name="mdloo", alt=alt, height=2.2),
        )
    for name, (what, unit) in CHECKS.items():
        logged = {
            step: plots.Line([row["iteration"] for row in rows], [row[name] for row in rows])
            for step, rows in found.items()
            if len(rows) > 1 and name in rows[0]
        }
        if logged:
            alt = "; ".join(f"{step} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for step, line in logged.items())
            svg = plots.lines(logged, "iteration", unit, name=f"mdloo-{name}", alt=alt, height=1.6)
            yield Figure(f"{what}, by iteration.", svg)


CHAPTERS = (
    Chapter("Examples for fine-tuning", ("sft_mixture",), examples),
    Chapter("Fine-tuning", ("sft",), finetuning),
    Chapter("Reward model", ("reward",), reward_models),
    Chapter("Committee rounds", ("committee",), committee),
)
