"""The iterative teaching committee, iTeC (AFM, section 4.2.3): sample from all members, train each, keep the best.

Step `rollouts` draws a round's answers from the members so far and scores them; `rejection`, `dpo`, `ipo` and `mdloo`
each train a new member on them; step `committee` compares them on problems nobody trained on and picks the best. In the
next round (steps `..._2`) the best and the other members give the answers, and a reward model refitted on pairs of the
best's own answers judges them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.model.checkpoint import save_model
from openafm.posttraining.examples import Row, write_json
from openafm.posttraining.policy import Answer, Policy, rate
from openafm.posttraining.reward import MixConfig, Scorer
from openafm.stage import Config, Context, Metrics


class RolloutsConfig(Config):
    """How a round's answers are drawn."""

    prompts: int = 192
    """Training problems."""
    samples: int = 8
    """Answers to each, spread evenly over the members."""
    max_tokens: int = 24
    """Longest answer, in tokens; problems whose reference answer is longer are left out."""
    mix: MixConfig = MixConfig()
    """How they are rewarded."""


class CommitteeConfig(Config):
    """How members are compared."""

    problems: int = 256
    """Validation problems that decide, and as many held-out ones that are reported."""
    max_tokens: int = 24
    """Longest answer, in tokens; problems whose reference answer is longer are left out."""
    sampled: bool = False
    """Also answer each problem once at temperature 1; greedy answers decide all the same."""
    mix: MixConfig = MixConfig()
    """How answers are rewarded, where members are right equally often."""


def rollouts(
    config: RolloutsConfig, context: Context, *, members: dict[str, Path], reward: Path, examples: Path
) -> Metrics:
    """Write `rollouts.jsonl`: one row a prompt and member with its scored answers."""
    rows = draw(
        config, context, members, Scorer.load(reward, config.mix), jsonl.read(examples / "train.jsonl"), "rollouts"
    )
    jsonl.write(context.out / "rollouts.jsonl", rows)
    members_found = by_member(rows)
    right = ", ".join(f"{name} {row['passed']}/{row['n']}" for name, row in members_found.items())
    return {"headline": f"answers right: {right}", "members": members_found}


def draw(
    config: RolloutsConfig,
    context: Context,
    members: Mapping[str, Path],
    scorer: Scorer,
    examples: Sequence[Row],
    label: str,
) -> list[Row]:
    """Draw and score `samples` answers a problem; the members take turns, starting with another one each problem."""
    names = list(members)
    problems = Policy.load(members[names[0]]).problems(
        examples, config.prompts, config.max_tokens, f"{context.seed}/{label}"
    )
    rows: list[tuple[int, Row]] = []
    for number, name in enumerate(names):
        policy = Policy.load(members[name])
        turns = [sum((p + j) % len(names) == number for j in range(config.samples)) for p in range(len(problems))]
        repeated = [problem for problem, count in zip(problems, turns, strict=True) for _ in range(count)]
        answers = policy.answer(repeated, config.max_tokens, context, f"rollouts {name}")
        rewards = scorer.score(repeated, answers)
        at = 0
        for index, (problem, count) in enumerate(zip(problems, turns, strict=True)):
            if count:
                part = slice(at, at + count)
                rows.append((index, _rollout(policy, problem, name, answers[part], rewards[part])))
            at += count
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _rollout(policy: Policy, problem: Row, member: str, answers: list[Answer], rewards: list[float]) -> Row:
    completions = [
        {"text": a.text, "tokens": a.tokens, "logprobs": a.logprobs, "reward": reward, "passed": a.passed}
        for a, reward in zip(answers, rewards, strict=True)
    ]
    kept = {key: problem[key] for key in ("id", "task", "messages")}
    return {**kept, "prompt_tokens": policy.prompt(problem), "member": member, "completions": completions}


def by_member(rows: Sequence[Row]) -> Metrics:
    """Mean reward and share of verified answers of each member."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["member"], []).extend(row["completions"])
    return {
        name: {
            "reward": round(sum(c["reward"] for c in completions) / len(completions), 5),
            **rate(sum(c["passed"] for c in completions), len(completions)),
        }
        for name, completions in found.items()
    }


def by_prompt(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """Each prompt once, with the answers of all members: the verified ones first, then by reward."""
    prompts: dict[str, tuple[Row, list[Row]]] = {}
    for row in rows:
        prompts.setdefault(row["id"], (row, []))[1].extend(row["completions"])
    return [(row, sorted(answers, key=lambda a: (not a["passed"], -a["reward"]))) for row, answers in prompts.values()]


def committee(
    config: CommitteeConfig,
    context: Context,
    *,
    members: dict[str, Path],
    reward: Path,
    examples: Path,
    control: Path | None = None,
) -> Metrics:
    """Write the best member's model folder and `committee.json`.

    The validation problems decide (more verified answers, then more reward, then the earlier member), the held-out
    problems are reported. The control is measured beside the members and never picked.
    """
    scorer = Scorer.load(reward, config.mix)
    candidates = {**members, **({"control": control} if control else {})}
    table: dict[str, Any] = {name: {} for name in candidates}
    for split in ("validation", "heldout"):
        rows = jsonl.read(examples / f"{split}.jsonl")
        for name, folder in candidates.items():
            table[name][split] = compare(folder, rows, config, scorer, context, f"{name} {split}")
    figures = {name: table[name]["validation"] for name in members}
    best = max(figures, key=lambda name: (figures[name]["passed"], figures[name]["reward"]))
    write_json(context.out / "committee.json", {"best": best, "members": table})
    save_model(Policy.load(members[best]).model, context.out, tokenizer=members[best])
    right = ", ".join(f"{name} {row['heldout']['passed']}/{row['heldout']['n']}" for name, row in table.items())
    headline = f"held-out answers right: {right}; best on validation: {best}"
    return {"headline": headline, "best": best, "members": table}


def methods(
    config: CommitteeConfig, context: Context, *, members: dict[str, Path], reward: Path, examples: Path
) -> Metrics:
    """Measure models on the same held-out problems, and pick none: `methods.json`."""
    scorer, rows = Scorer.load(reward, config.mix), jsonl.read(examples / "heldout.jsonl")
    table = {name: compare(folder, rows, config, scorer, context, name) for name, folder in members.items()}
    write_json(context.out / "methods.json", table)
    right = ", ".join(f"{name} {row['passed']}/{row['n']}" for name, row in table.items())
    return {"headline": f"held-out answers right: {right}", "members": table}


def compare(
    folder: Path, rows: Sequence[Row], config: CommitteeConfig, scorer: Scorer, context: Context, label: str
) -> Metrics:
    """Verified accuracy with its interval, by task too, and mean reward and answer length of one model."""
    policy = Policy.load(folder)
    problems = policy.problems(rows, config.problems, config.max_tokens, f"{context.seed}/committee")
    answers = policy.answer(problems, config.max_tokens, context, label, temperature=0.0)
    rewards = scorer.score(problems, answers)
    tasks: dict[str, list[bool]] = {}
    for problem, answer in zip(problems, answers, strict=True):
        tasks.setdefault(problem["task"], []).append(answer.passed)
    drawn: Metrics = {}
    if config.sampled:
        sampled = policy.answer(problems, config.max_tokens, context, f"{label} sampled")
        drawn = {"sampled": rate(sum(a.passed for a in sampled), len(sampled))}
    return {
        **rate(sum(a.passed for a in answers), len(answers)),
        **drawn,
        "reward": round(sum(rewards) / len(rewards), 5),
        "tokens": round(sum(len(a.tokens) for a in answers) / len(answers), 3),
        "tasks": {task: rate(sum(hits), len(hits)) for task, hits in sorted(tasks.items())},
    }
