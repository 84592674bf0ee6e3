"""Training on one process and on two, broken: killed, hung, slow and cut off ranks, and replicas that drift apart.

    python tests/reliability/ranks.py --kills 20
    python tests/reliability/ranks.py --kills 4 --processes 1
    python tests/reliability/ranks.py --kills 0 --elastic 0 --hangs 3

Every broken run is started again until it is done, by torchrun or by the drill, and must end with the unbroken run's
weights, bit for bit. `hung` stops a rank for good and `cut` takes down the link between two network namespaces (needs
root): how long the others waited is told. Prints a line a drill; exit code 1 if one did not hold.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil

STEPS = 200
SILENT = 8
"""Seconds after which a rank that does not answer counts as lost."""
FLIP, REPLICATE = "OPENAFM_DRILL_FLIP", "OPENAFM_DRILL_REPLICATE"
"""Environment variables of a worker: at which step rank 1 flips a bit of its weights, once; how many replicas."""
NAMESPACES = ("openafm-left", "openafm-right")


def worker(folder: Path) -> None:
    """Train a small model with dropout, with a checkpoint every tenth of a second; writes weights.safetensors."""
    import torch
    from safetensors.torch import save_file

    from openafm.model import ModelConfig, Transformer
    from openafm.model.muparam import initialise, parameter_groups
    from openafm.stage import Context, Parallelism
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
    context.parallelism = Parallelism(replicate=int(os.environ.get(REPLICATE, "1")))

    def before_step(network: torch.nn.Module, step: int) -> None:
        (folder / f"began-{rank}").touch()
        if rank == 1 and step == int(os.environ.get(FLIP, "-1")) and not (folder / "flipped").exists():
            (folder / "flipped").touch()
            weight = parallel.local(next(network.parameters()).detach())
            weight.view(torch.int32).view(-1)[5] ^= 1 << 9

    train(
        model,
        batches,
        lambda m, b: chunked_next_token(m.hidden(b["inputs"]), m.model.embed_tokens.weight, b["targets"], 1e-6),
        optimizer,
        cosine(256 * STEPS, 1024, 0.01),
        context,
        checkpoint_seconds=0.1,
        before_step=before_step,
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

    def start(self, run: Path, processes: int, restarts: int = 0, **more: str) -> subprocess.Popen:
        """The worker, alone or under torchrun, with more in its environment."""
        for mark in (*run.glob("began-*"), *run.glob("pid-*")):
            mark.unlink()
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(run)]
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
                            f"--max-restarts={restarts}"]  # fmt: skip
        with (run / "log.txt").open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENAFM_RANK_SECONDS": str(SILENT)} | more
            self.started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return self.started[-1]

    def unbroken(self, processes: int, **more: str) -> tuple[bytes, float]:
        """The weights that every killed run has to end with, and the seconds that training took."""
        run = self.fresh()
        process = self.start(run, processes, **more)
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

    def hung(self, processes: int, count: int) -> str:
        """Stop one rank for good; the others notice, and torchrun starts all anew."""
        reference, seconds = self.unbroken(processes)
        waited: list[float] = []
        for _ in range(count):
            run = self.fresh()
            process = self.start(run, processes, restarts=3)
            self.wait_for(run / "began-0", process)
            time.sleep(self.rng.uniform(0.2, 0.6) * seconds)
            rank = self.rng.randrange(processes)
            stopped = int((run / f"pid-{rank}").read_text())
            os.kill(stopped, signal.SIGSTOP)
            began = time.monotonic()
            while psutil.pid_exists(stopped) and process.poll() is None:
                assert time.monotonic() - began < 10 * SILENT + 60, f"rank {rank} hung, and nobody noticed"
                time.sleep(0.05)
            waited.append(time.monotonic() - began)
            assert process.wait() == 0, (run / "log.txt").read_text()
            assert (run / "weights.safetensors").read_bytes() == reference, f"{run}: other weights"
        return (
            f"{count} runs with a rank stopped for good: ended within {max(waited):.0f} s (limit {SILENT} s, "
            "and 30 s that torchrun leaves a process to end), restarted: bit-identical weights"
        )

    def slow(self, processes: int, count: int) -> str:
        """Stop a rank for less than the limit, several times a run: the others wait, and nothing is started anew."""
        reference, seconds = self.unbroken(processes)
        for _ in range(count):
            run = self.fresh()
            process = self.start(run, processes)
            self.wait_for(run / "began-0", process)
            for _ in range(3):
                pid = int((run / f"pid-{self.rng.randrange(processes)}").read_text())
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(SILENT / 4)
                    os.kill(pid, signal.SIGCONT)
                time.sleep(0.05 * seconds)
            assert process.wait() == 0, (run / "log.txt").read_text()
            assert (run / "weights.safetensors").read_bytes() == reference, f"{run}: other weights"
        return f"{count} runs with a rank stopped three times for {SILENT / 4:g} s: waited for, bit-identical weights"

    def drifted(self) -> str:
        """Flip a bit of one of two replicas' weights: told within the steps of a comparison, and trained anew."""
        reference, _ = self.unbroken(2, **{REPLICATE: "2"})
        run = self.fresh()
        process = self.start(run, 2, restarts=3, **{REPLICATE: "2", FLIP: str(STEPS // 3)})
        code, log = process.wait(), (run / "log.txt").read_text()
        assert (run / "flipped").exists() and "the replicas' weights differ between processes" in log, log
        assert code == 0, log
        assert (run / "weights.safetensors").read_bytes() == reference, f"{run}: other weights"
        return "a flipped bit of a replica was told before the next checkpoint; restarted: bit-identical weights"

    def cut(self) -> str:
        """Two ranks in namespaces of their own; the link goes down for good, both end; with a link they go on."""
        reference, seconds = self.unbroken(2)
        with two_namespaces() as link:
            run = self.fresh()
            ranks = self.start_apart(run)
            self.wait_for(run / "began-0", ranks[0])
            time.sleep(0.4 * seconds)
            began = time.monotonic()
            link("down")
            for rank in ranks:
                assert rank.wait(10 * SILENT + 60) != 0, "a rank ended well without the other"
            waited = time.monotonic() - began
            link("up")
            for rank in self.start_apart(run):
                assert rank.wait() == 0, (run / "log.txt").read_text()
            assert (run / "weights.safetensors").read_bytes() == reference, f"{run}: other weights"
        return (
            f"both ranks ended {waited:.0f} s after the cut (limit {SILENT} s); the same command went on: same weights"
        )

    def start_apart(self, run: Path) -> list[subprocess.Popen]:
        """A rank in each namespace, as two machines without torchrun."""
        for mark in (*run.glob("began-*"), *run.glob("pid-*")):
            mark.unlink()
        made = []
        with (run / "log.txt").open("ab") as log:
            for rank, name in enumerate(NAMESPACES):
                place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1",
                         "MASTER_PORT": "29577", "GLOO_SOCKET_IFNAME": f"oafm{rank}", "OMP_NUM_THREADS": "1",
                         "OPENAFM_RANK_SECONDS": str(SILENT)}  # fmt: skip
                command = ["ip", "netns", "exec", name, sys.executable, str(Path(__file__).resolve())]
                made.append(
                    subprocess.Popen([*command, "--worker", str(run)], stdout=log, stderr=log, env=os.environ | place)
                )
        self.started += made
        return made


class SkippedError(Exception):
    """This machine does not allow a drill; the message says why."""


@contextmanager
def two_namespaces() -> Iterator[Callable[[str], None]]:
    """Two network namespaces and a link between them, which the yielded function takes `down` and `up`."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    def link(state: str) -> None:
        ip("-n", NAMESPACES[1], "link", "set", "oafm1", state)

    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        raise SkippedError("network namespaces need Linux, root and iproute2")
    try:
        for name in NAMESPACES:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "oafm0",
            "netns",
            NAMESPACES[0],
            "type",
            "veth",
            "peer",
            "name",
            "oafm1",
            "netns",
            NAMESPACES[1],
        )
        for number, name in enumerate(NAMESPACES):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"oafm{number}")
            ip("-n", name, "link", "set", f"oafm{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield link
    except subprocess.CalledProcessError as error:
        raise SkippedError(f"no network namespaces here: {error.stderr.strip()}") from None
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


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
    parser.add_argument("--hangs", type=int, default=2, help="runs in which a rank hangs, and in which one is slow")
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
        most = max(options.processes)
        todo = [(f"kills, {n} processes", lambda n=n: drill.kills(n, options.kills)) for n in options.processes]
        todo = todo if options.kills else []
        if most > 1 and options.elastic:
            todo.append(("a rank killed", lambda: drill.elastic(most, options.elastic)))
        if most > 1 and options.hangs:
            todo += [
                ("a rank hung", lambda: drill.hung(most, options.hangs)),
                ("a slow rank", lambda: drill.slow(most, options.hangs)),
                ("a replica drifted", drill.drifted),
                ("a network cut", drill.cut),
            ]
        for name, work in todo:
            started = time.monotonic()
            try:
                outcome = work()
            except SkippedError as reason:
                outcome = f"skipped: {reason}"
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failed, outcome = True, f"FAILED: {error}"
            finally:
                for process in drill.started:
                    if process.poll() is None:
                        kill_all(process)
            print(f"{name:<22} {time.monotonic() - started:>6.0f} s  {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
