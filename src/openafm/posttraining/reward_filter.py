"""Step `reward_filter`: a reward model reads synthetic examples, and the worst of each task go.

AFM filters synthetic mathematics by a reward model besides the answer check (arXiv 2407.21075, section 4.1.2). The step
stands between a maker of examples and the next round's `sft_mixture`; what people wrote is not judged.
"""

from pathlib import Path

from pydantic import Field

from openafm import jsonl
from openafm.posttraining.examples import Row
from openafm.posttraining.reward import conversation, load_judge
from openafm.stage import Config, Context, Metrics
from openafm.tokenizer import load as load_tokenizer


class RewardFilterConfig(Config):
    """How many go."""

    drop_share: float = Field(0.1, ge=0, lt=1)
    """Share of each task's synthetic examples that go, those of the lowest reward. Rewards of different tasks say
    nothing of each other, as a reward model compares answers to one question."""


def reward_filter(config: RewardFilterConfig, context: Context, *, examples: Path, reward: Path) -> Metrics:
    """Write `examples.jsonl`, in its order, and `rejected.jsonl` with the earlier rejects, reasons and rewards."""
    rows = jsonl.read(examples / "examples.jsonl")
    judged = [place for place, row in enumerate(rows) if row["origin"] == "synthetic"]
    values = dict(zip(judged, rewards([rows[place] for place in judged], reward), strict=True))
    dropped = lowest(rows, values, config.drop_share)
    earlier = examples / "rejected.jsonl"
    rejected = [
        {**rows[place], "reason": "low_reward", "evidence": f"reward {values[place]:.3f}"} for place in sorted(dropped)
    ]
    jsonl.write(context.out / "examples.jsonl", (row for place, row in enumerate(rows) if place not in dropped))
    jsonl.write(context.out / "rejected.jsonl", [*(jsonl.read(earlier) if earlier.exists() else []), *rejected])
    told = f"{len(dropped):,} of {len(judged):,} synthetic examples dropped for their reward"
    return {"headline": told, "examples": len(rows) - len(dropped), "judged": len(judged), "low_reward": len(dropped)}


def rewards(rows: list[Row], folder: Path) -> list[float]:
    """The reward of each example's answer."""
    judge, tokenizer = load_judge(folder), load_tokenizer(folder)
    longest = judge.longest
    return judge.rewards([conversation(tokenizer, row["messages"], row["answer"], longest) for row in rows])


def lowest(rows: list[Row], values: dict[int, float], share: float) -> set[int]:
    """Places of the `share` of each task's judged rows with the lowest values; equal values go by id."""
    by_task: dict[str, list[int]] = {}
    for place in values:
        by_task.setdefault(rows[place]["task"], []).append(place)
    dropped: set[int] = set()
    for places in by_task.values():
        ordered = sorted(places, key=lambda place: (values[place], rows[place]["id"]))
        dropped |= set(ordered[: int(share * len(ordered))])
    return dropped
