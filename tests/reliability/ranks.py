"""Training killed on one process and on two: kill -9 at random moments, and one rank under torchrun's restarts.

    python tests/reliability/ranks.py --kills 20
    python tests/reliability/ranks.py --kills 4 --processes 1

Every killed run is started again until it is done, and must end with the unbroken run's weights, bit for bit. Prints a
line a drill; exit code 1 if one did not hold.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

STEPS = 200


def worker(folder: Path) -> None:
    """Train a small model with dropout, with a checkpoint every tenth of a second; writes weights.safetensors."""
    import torch
    from safetensors.torch import save_file

    from openafm.model import ModelConfig, Transformer
    from openafm.model.muparam import initialise, parameter_groups
    from openafm.stage import Context
    from openafm.training import parallel
    from openafm.training.batches import TokenBatches
    from openafm.training.loop import train
    from openafm.training.losses import chunked_next_token
    from openafm.training.optimizers import RMSPropMomentum
    from openafm.training.schedules import cosine

    torch.set_num_threads(1)
    parallel.start()
    rank = parallel.rank()
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    config = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64)
    model = initialise(Transformer(config, dropout=0.1), 0)
    batches = TokenBatches(
        folder.parent / "shards", {"web": 1}, sequence_length=64, batch_tokens=256, tokens=256 * STEPS, seed=0
    )
    optimizer = RMSPropMomentum(parameter_groups(model, 32), 0.01, 1e-3)
    context = Context(folder, folder / f"scratch-{rank}", shared=folder / "shared")
    train(
        model,
        batches,
        lambda m, b: chunked_next_token(m.hidden(b["inputs"]), m.model.embed_tokens.weight, b["targets"], 1e-6),
        optimizer,
        cosine(256 * STEPS, 1024, 0.01),
        context,
        checkpoint_seconds=0.1,
        before_step=lambda network, step: (folder / f"began-{rank}").touch(),
    )
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "partial")
        (folder / "partial").replace(folder / "weights.safetensors")
    parallel.leave()


class Drill:
    """Folders of runs, and how a run is started."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng, self.runs = folder, random.Random(seed), 0
        self.started: list[subprocess.Popen] = []
        shards = folder / "shards"
        (shards / "train").mkdir(parents=True)
        tokens = np.random.default_rng(0).integers(4, 64, 20_000).astype(np.uint16)
        np.repeat(tokens, 2).tofile(shards / "train/web.bin")
        index = {"vocab_size": 64, "dtype": "uint16", "splits": {"train": {"web": {}}}}
        (shards / "index.json").write_text(json.dumps(index))

    def fresh(self) -> Path:
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        return folder

    def start(self, run: Path, processes: int, restarts: int = 0) -> subprocess.Popen:
        """The worker, alone or under torchrun."""
        for mark in (*run.glob("began-*"), *run.glob("pid-*")):
            mark.unlink()
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(run)]
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
                            f"--max-restarts={restarts}"]  # fmt: skip
        with (run / "log.txt").open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return self.started[-1]

    def unbroken(self, processes: int) -> tuple[bytes, float]:
        """The weights that every killed run has to end with, and the seconds that training took."""
        run = self.fresh()
        process = self.start(run, processes)
        self.wait_for(run / "began-0", process)
        began = time.monotonic()
        assert process.wait() == 0, (run / "log.txt").read_text()
        return (run / "weights.safetensors").read_bytes(), time.monotonic() - began

    def wait_for(self, path: Path, process: subprocess.Popen) -> None:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)

    def kills(self, processes: int, count: int) -> str:
        """Kill all of a run's processes at once, at moments drawn over the time that training takes."""
        reference, seconds = self.unbroken(processes)
        killed, runs, resumed = 0, 0, 0
        while killed < count:
            run, runs = self.fresh(), runs + 1
            while True:
                process = self.start(run, processes)
                self.wait_for(run / "began-0", process)
                try:
                    process.wait(self.rng.uniform(0, seconds) if killed < count else None)
                except subprocess.TimeoutExpired:
                    kill_all(process)
                    killed += 1
                    resumed += bool(list(run.glob("shared/train/*/checkpoint.json")))
                    continue
                assert process.returncode == 0, (run / "log.txt").read_text()
                break
            assert (run / "weights.safetensors").read_bytes() == reference, f"{run}: other weights"
        return f"{killed} kills in {runs} runs, {resumed} of them with a checkpoint behind: bit-identical weights"

    def elastic(self, processes: int, count: int) -> str:
        """Kill one rank; torchrun starts all anew, and training goes on by itself."""
        reference, seconds = self.unbroken(processes)
        killed = 0
        while killed < count:
            run = self.fresh()
            process = self.start(run, processes, restarts=3)
            self.wait_for(run / "began-0", process)
            time.sleep(self.rng.uniform(0.2, 0.8) * seconds)
            with suppress(ProcessLookupError):  # done before its time
                os.kill(int((run / f"pid-{self.rng.randrange(processes)}").read_text()), signal.SIGKILL)
                killed += 1
            assert process.wait() == 0, (run / "log.txt").read_text()
            assert (run / "weights.safetensors").read_bytes() == reference, f"{run}: other weights"
        return f"{count} runs with a rank killed went on from the last checkpoint: bit-identical weights"


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all it started."""
    every = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in every:
        one.kill()
    psutil.wait_procs(every[1:], timeout=30)
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--elastic", type=int, default=5, help="runs in which one rank is killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return 0
    failed = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left at work
    with tempfile.TemporaryDirectory(prefix="openafm-ranks-") as folder:
        drill = Drill(Path(folder), options.seed)
        todo = [(f"kills, {n} processes", lambda n=n: drill.kills(n, options.kills)) for n in options.processes]
        if max(options.processes) > 1 and options.elastic:
            todo.append(("a rank killed", lambda: drill.elastic(max(options.processes), options.elastic)))
        for name, work in todo:
            started = time.monotonic()
            try:
                outcome = work()
            except AssertionError as error:
                failed, outcome = True, f"FAILED: {error}"
            finally:
                for process in drill.started:
                    if process.poll() is None:
                        kill_all(process)
            print(f"{name:<22} {time.monotonic() - started:>6.0f} s  {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
