"""What checkpoints cost: training with and without them, alternately, on a model of a chosen width.

    python benchmarks/checkpoints.py --width 512 --json

One checkpoint every `--every` steps; the cost is the time that it adds to a run, its writing beside it included. At the
training loop's own pace there is one every 20 s.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from harness import machine
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.training.checkpoints import Checkpoints, Position
from openafm.training.losses import chunked_next_token
from openafm.training.optimizers import RMSPropMomentum


def run(config: ModelConfig, steps: int, every: int, tokens: int, folder: Path | None) -> tuple[float, float]:
    """Seconds of `steps` steps, and those that saving kept them waiting; no checkpoints without `folder`."""
    model = initialise(Transformer(config), 0).train()
    optimizer = RMSPropMomentum(parameter_groups(model, config.d_model), 0.01)
    batch = torch.randint(config.vocab_size, (tokens // 256, 257), generator=torch.Generator().manual_seed(0))
    checkpoints = Checkpoints(folder, model, optimizer) if folder else None
    blocked = 0.0
    for step in range(-1, steps):
        if step == 0:
            started = time.perf_counter()
        hidden = model.hidden(batch[:, :-1])
        chunked_next_token(hidden, model.model.embed_tokens.weight, batch[:, 1:]).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if checkpoints and step >= 0 and step % every == every - 1:
            checkpoints.save(Position(step=step, updates=step))
            blocked += checkpoints.blocked
    if checkpoints:
        checkpoints.wait()
    seconds = time.perf_counter() - started
    if checkpoints:
        checkpoints.close()
    return seconds, blocked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    heads = options.width // 64
    config = ModelConfig(
        vocab_size=8192, d_model=options.width, n_layers=options.layers, n_heads=heads, n_kv_heads=max(1, heads // 2),
        head_dim=64, d_ff=3 * options.width,
    )  # fmt: skip
    plain, saved, waits = [], [], []
    for _ in range(options.repeats):
        plain.append(run(config, options.steps, options.every, options.tokens, None)[0])
        with tempfile.TemporaryDirectory(prefix="openafm-checkpoints-") as folder:
            seconds, blocked = run(config, options.steps, options.every, options.tokens, Path(folder))
        saved.append(seconds)
        waits.append(blocked)
    step = statistics.median(plain) / options.steps
    each = (statistics.median(saved) - statistics.median(plain)) / (options.steps // options.every)
    wait = statistics.median(waits) / (options.steps // options.every)
    cost = 100 * each / (options.every * step)
    print(f"{config.parameters / 1e6:.1f}M parameters, {12 * config.parameters / 1e6:.0f} MB a checkpoint")
    print(f"a step {step:.3f} s; a checkpoint adds {each:.3f} s, of which training waits {wait:.3f} s")
    print(
        f"every {options.every} steps: {cost:.1f}% of step time; every 20 s, as the loop does: {100 * each / 20:.2f}%"
    )
    if options.json:
        detail = {"step_seconds": step, "checkpoint_seconds": each, "waiting_seconds": wait, "every": options.every}
        ours = round(100 * each / 20, 3)
        report = {"name": "checkpoints", "unit": "% of step time", "ours": ours, "peers": {}, "limit": 1.0}
        print(json.dumps(report | {"detail": detail, "machine": machine()}))


if __name__ == "__main__":
    main()
