"""Does synthetic data help? Fine-tuning on all examples against people's alone, for as many tokens, over seeds.

    openafm bench synthesis_sft --run runs/nano --tokens 400000 --seeds 3

Both start from the same model of the run (`--model`, a step) and answer the same held-out verified problems, which
`sft_mixture` keeps apart by what they ask. Prints right answers by arm and task: the mean over the seeds, their
range, and the difference with a 95% interval (t over the pairs).
"""

import argparse
import json
import tempfile
from pathlib import Path

from harness import machine
from openafm import jsonl
from openafm.evaluation.evaluate import EvaluateConfig, open_model, task_estimates
from openafm.posttraining.sft import SftConfig, sft
from openafm.scoring import intervals
from openafm.stage import Context, Hardware

ARMS = {"with synthetic": ("human", "synthetic"), "without": ("human",)}


def accuracy(model: Path, examples: Path, config: SftConfig, problems: int, seed: int) -> dict[str, float]:
    """Share of held-out problems that the fine-tuned model answers rightly, by task and over all."""
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder) / "out", Path(folder) / "scratch"
        out.mkdir()
        scratch.mkdir()
        context = Context(out=out, scratch=scratch, seed=seed, hardware=Hardware(threads=1))
        sft(config, context, model=model, examples=examples)
        asked = EvaluateConfig(problems_per_task=problems)
        estimates = task_estimates(asked, context, open_model(out), examples)
    return {name.removeprefix("task/"): estimate.value for name, estimate in estimates.items()}


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
    rows, held = jsonl.read(mixture / "train.jsonl"), jsonl.read(mixture / "heldout.jsonl")
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for arm, origins in ARMS.items():
            part = Path(folder) / arm
            part.mkdir()
            jsonl.write(part / "train.jsonl", [row for row in rows if row["origin"] in origins])
            jsonl.write(part / "heldout.jsonl", held)
        for seed in range(asked.seeds):
            for arm in ARMS:
                found[arm].append(accuracy(model, Path(folder) / arm, config, asked.problems, seed))
                print(f"seed {seed}, {arm}: {found[arm][-1]['all']:.3f}", flush=True)
    print(f"\n{'task':<20}" + "".join(f"{arm:>26}" for arm in ARMS))
    for task in found["without"][0]:
        told = [[run[task] for run in found[arm]] for arm in ARMS]
        shown = (f"{sum(v) / len(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in told)
        print(f"{task:<20}" + "".join(f"{text:>26}" for text in shown))
    gains = [one["all"] - other["all"] for one, other in zip(found["with synthetic"], found["without"], strict=True)]
    low, high = intervals.mean(gains)
    print(f"gain {sum(gains) / len(gains):.3f}, 95% interval {low:.3f} to {high:.3f}, {len(gains)} seeds")
    if asked.json:
        means = {arm: sum(run["all"] for run in runs) / len(runs) for arm, runs in found.items()}
        detail = {"gain": gains, "interval": [low, high], "tokens": asked.tokens, "tasks": found}
        line = {"name": "synthesis_sft", "unit": "held-out verified accuracy", "ours": means["with synthetic"]}
        line |= {"peers": {"without": means["without"]}, "limit": 1.0, "detail": detail, "machine": machine()}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
