"""The same bytes from processes of this machine and from a Ray cluster, whose processes and whose head are killed."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

PROGRAM = """
import json, random, sys, threading, time
from pathlib import Path

import psutil

from openafm.data import decontaminate, dedup, documents, frames, parallel
from openafm.data.documents import judged
from openafm.stage import Context

QUESTION = "How many bags of seven apples hold ninety one apples, and what is left of them in the end?"


class Judge:
    def __init__(self, wait):
        self.wait = wait

    def __call__(self, rows):
        time.sleep(self.wait)
        return [judged(row, "clean", "keep", "", f"{len(row['text'])} letters") for row in rows]


def corpus():
    draw, words = random.Random(0), [f"word{n}" for n in range(500)]
    texts = [" ".join(draw.choices(words, k=80)) for _ in range(150)]
    texts += [text.replace("word7", "other") for text in texts[:20]] + [f"{text} {QUESTION}" for text in texts[30:35]]
    return [documents.document(f"http://x/{n}", draw.choice(documents.FLOWS), text) for n, text in enumerate(texts)]


def judge(folder, wait):
    (folder / "clean").mkdir(parents=True)
    documents.write(corpus(), folder / "extract")
    frames.rewrite(folder / "extract", folder / "clean", Judge, (wait,), lambda *progress: None, "judge")


def run(folder):
    judge(folder, 0)
    steps = {name: Context(folder / name, folder / f"{name}-scratch") for name in ("dedup", "decontaminate")}
    for context in steps.values():
        context.out.mkdir(parents=True)
        context.scratch.mkdir()
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "shop.jsonl").write_text(json.dumps({"id": "1", "text": QUESTION}))
    found = [dedup.dedup(dedup.DedupConfig(index=True), steps["dedup"], documents=folder / "clean")]
    config = decontaminate.DecontaminateConfig()
    inputs = {"documents": folder / "dedup", "sources": folder}
    found.append(decontaminate.decontaminate(config, steps["decontaminate"], **inputs))
    (folder / "metrics.json").write_text(json.dumps(found))


def kill(done):
    while not done:
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [""])[0].startswith("ray::UDFActor."):
                time.sleep(0.2)
                process.kill()
                done.append(process.pid)
                return
        time.sleep(0.01)


def main():
    folder, runner = Path(sys.argv[1]), sys.argv[2]
    if runner == "native":
        return run(folder / "native")
    if runner.startswith("127"):
        parallel.use_cluster(runner)
        return judge(folder / "headless", float(sys.argv[3]))
    parallel.use_cluster("local")
    run(folder / "ray")
    done = []
    threading.Thread(target=kill, args=(done,), daemon=True).start()
    judge(folder / "killed", 0.2)
    print("killed", len(done))
    done.append(0)


main()
"""


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "-scratch" not in path.parent.as_posix())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_cluster_gives_the_same_bytes_and_a_killed_process_changes_nothing(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = ""
    for runner in ("native", "ray"):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), runner]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        said += done.stdout
    assert "killed 1" in said
    native, ray, killed = (contents(tmp_path / name) for name in ("native", "ray", "killed"))
    assert len(native) > 16 * 4 and native == ray
    assert len(killed) == 2 * 17 and killed == {name: native[name] for name in killed}
    assert b"duplicate.near" in native["metrics.json"] and b"benchmark.shop" in native["metrics.json"]


@contextmanager
def head(port: int, folder: Path, environment: dict[str, str]):
    """A Ray cluster's head on a port of this machine, killed in the end."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--num-cpus=2", "--disable-usage-stats"]
    ray += ["--block", "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    process = subprocess.Popen(
        [*ray, f"--port={port}"], env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        for member in (*family, process):
            member.kill()
        psutil.wait_procs(family, 30)
        process.wait()


def test_where_the_head_dies_the_step_ends_and_goes_on_with_a_new_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path("/tmp") / f"ray-test-{os.getpid()}"  # sockets' paths are at most 107 bytes
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    try:
        with head(port, folder / "1", environment):
            step = [*command, f"127.0.0.1:{port}", "2"]
            broken = subprocess.Popen(step, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while not any((tmp_path / "headless" / "extract").rglob("*.parquet")):
                assert broken.poll() is None, broken.stderr.read().decode()[-2000:]
                time.sleep(0.1)
            time.sleep(5)  # each part of the step waits for 2 s
            assert broken.poll() is None
        told = broken.communicate(timeout=180)[1].decode()
        assert broken.returncode != 0 and "GCS" in told, told[-2000:]
        shutil.rmtree(tmp_path / "headless")
        with head(port, folder / "2", environment):
            subprocess.run([*command, f"127.0.0.1:{port}", "0"], env=environment, check=True, timeout=300)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*command, "native"], env=environment, check=True, timeout=300)
    ours, native = contents(tmp_path / "headless"), contents(tmp_path / "native")
    assert len(ours) == 2 * 17 and ours == {name: native[name] for name in ours}
