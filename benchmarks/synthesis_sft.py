"""Does synthetic data help? Fine-tuning on all examples against people's alone, for as many tokens, over seeds.

    openafm bench synthesis_sft --run runs/nano --tokens 400000 --seeds 3

Both start from the same model of the run (`--model`, a step), see the same number of tokens in the same packing, and
answer the same held-out verified problems, which `sft_mixture` keeps apart by what they ask. A seed draws the order of
the examples and the dropout. Prints what each arm holds and how often its tokens show it, the start model's own
answers, right answers by arm and task (mean over the seeds and range), the paired difference of each seed, and each
mean with a 95% interval (t over the seeds). The loss on held-out answers by people says what an arm costs on those.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from harness import machine
from openafm import jsonl
from openafm.evaluation.evaluate import EvaluateConfig, held_out_problems, open_model, task_estimates
from openafm.posttraining.policy import Policy
from openafm.posttraining.sft import SftConfig, held_out_loss, sft
from openafm.scoring import intervals
from openafm.stage import Context, Hardware
from openafm.training.batches import tokenize_examples

ARMS = {"with synthetic": ("human", "synthetic"), "without": ("human",)}
Row = dict[str, Any]


def answers(model: Path, examples: Path, problems: int, scratch: Path) -> dict[str, float]:
    """Share of held-out problems that a model answers rightly, by task and over all."""
    context = Context(out=scratch, scratch=scratch, seed=0, hardware=Hardware(threads=1))
    estimates = task_estimates(EvaluateConfig(problems_per_task=problems), context, open_model(model), examples)
    return {name.removeprefix("task/"): estimate.value for name, estimate in estimates.items()}


def fine_tuned(model: Path, arm: Path, people: Path, config: SftConfig, problems: int, seed: int) -> dict[str, float]:
    """Fine-tune on an arm: right answers by task, and `people`, nats a token of people's held-out answers."""
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder) / "out", Path(folder) / "scratch"
        out.mkdir()
        scratch.mkdir()
        context = Context(out=out, scratch=scratch, seed=seed, hardware=Hardware(threads=1))
        sft(config, context, model=model, examples=arm)
        loss = held_out_loss(Policy.load(out), people, config, context.hardware)
        return answers(out, arm, problems, scratch) | {"people": loss or float("nan")}


def arms(mixture: Path, folder: Path, config: SftConfig, policy: Policy) -> dict[str, Row]:
    """Write the examples of each arm, and people's held-out ones, below `folder`; print what each holds."""
    rows, held = jsonl.read(mixture / "train.jsonl"), jsonl.read(mixture / "heldout.jsonl")
    (folder / "people").mkdir()
    jsonl.write(folder / "people" / "heldout.jsonl", [row for row in held if row["origin"] == "human"])
    found: dict[str, Row] = {}
    print(f"{'arm':<16}{'examples':>10}{'by people':>11}{'too long':>10}{'their tokens':>14}{'times seen':>12}")
    for arm, origins in ARMS.items():
        (folder / arm).mkdir()
        mine = [row for row in rows if row["origin"] in origins]
        jsonl.write(folder / arm / "train.jsonl", mine)
        jsonl.write(folder / arm / "heldout.jsonl", held)
        pairs, long = tokenize_examples(mine, policy.tokenizer, config.sequence_length + 1)
        tokens, people = sum(len(p) + len(a) for p, a in pairs), sum(row["origin"] == "human" for row in mine)
        found[arm] = {"examples": len(pairs), "human": people, "too_long": long, "tokens": tokens}
        print(f"{arm:<16}{len(pairs):>10,}{people:>11,}{long:>10,}{tokens:>14,}{config.tokens / tokens:>12.1f}")
    return found


def interval(values: list[float]) -> str:
    """A mean with its 95% interval, for reading."""
    low, high = intervals.mean(values)
    return f"{sum(values) / len(values):.3f}, 95% interval {low:.3f} to {high:.3f}, {len(values)} seeds"


def report(start: dict[str, float], found: dict[str, list[dict[str, float]]]) -> list[float]:
    """Print tasks by arm, each arm's mean, and the paired differences; return those."""
    print(f"\n{'task':<20}{'start model':>13}" + "".join(f"{arm:>26}" for arm in ARMS))
    for task in found["without"][0]:
        told = [[run[task] for run in found[arm]] for arm in ARMS]
        shown = (f"{sum(v) / len(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in told)
        name = "people's loss" if task == "people" else task
        print(f"{name:<20}{start[task]:>13.3f}" + "".join(f"{text:>26}" for text in shown))
    for arm in ARMS:
        print(f"{arm}: {interval([run['all'] for run in found[arm]])}")
    gains = [one["all"] - other["all"] for one, other in zip(found["with synthetic"], found["without"], strict=True)]
    print("paired differences: " + ", ".join(f"seed {seed} {gain:.3f}" for seed, gain in enumerate(gains)))
    print(f"gain {interval(gains)}")
    return gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="a run, default runs/nano")
    parser.add_argument("--model", default="long", help="the step whose model is fine-tuned, default long")
    parser.add_argument("--mixture", default="sft_mixture", help="the step of the examples, default sft_mixture")
    parser.add_argument("--tokens", type=int, default=100_000, help="training tokens of each arm, default 100000")
    parser.add_argument("--lr", type=float, default=0.003, help="learning rate, default 0.003 (nano's)")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--problems", type=int, default=40, help="held-out problems of each task, default 40")
    parser.add_argument("--json", action="store_true", help="print the result as one last line of JSON")
    asked = parser.parse_args()
    config = SftConfig(tokens=asked.tokens, lr=asked.lr, batch_tokens=512, sequence_length=128, snapshots=0)
    mixture, model = asked.run / asked.mixture, asked.run / asked.model
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as temporary:
        folder, policy = Path(temporary), Policy.load(model)
        held = arms(mixture, folder, config, policy)
        start = answers(model, mixture, asked.problems, folder)
        start["people"] = held_out_loss(policy, folder / "people", config, Hardware(threads=1)) or float("nan")
        asks = {task: len(rows) for task, rows in held_out_problems(mixture, asked.problems).items()}
        print(f"{sum(asks.values())} held-out problems of {len(asks)} tasks")
        for seed in range(asked.seeds):
            for arm in ARMS:
                one = fine_tuned(model, folder / arm, folder / "people", config, asked.problems, seed)
                found[arm].append(one)
                print(f"seed {seed}, {arm}: {one['all']:.3f}", flush=True)
    gains = report(start, found)
    if asked.json:
        means = {arm: sum(run["all"] for run in runs) / len(runs) for arm, runs in found.items()}
        detail = {"gain": gains, "interval": intervals.mean(gains), "tokens": asked.tokens, "arms": held}
        detail |= {"tasks": found, "problems": asks}
        line = {"name": "synthesis_sft", "unit": "held-out verified accuracy", "ours": means["with synthetic"]}
        line |= {"peers": {"start": start["all"], "without": means["without"]}, "limit": 1.0}
        print(json.dumps({**line, "detail": detail, "machine": machine()}))


if __name__ == "__main__":
    main()
