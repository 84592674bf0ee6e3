"""This project's model class in the lm-evaluation-harness beside the harness's own Hugging Face class.

The same weights through both, on the same local tasks: a model folder is exported as Hugging Face has it (float32),
opened by `lm_eval.models.huggingface.HFLM`, and by `openafm.evaluation.harness.OpenAFM` as it is. Both scores of every
task are printed with their difference in points; more than 0.5 ends with exit code 1.

    openafm bench harness-bridge --model runs/device/import
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm.evaluation.harness import OpenAFM
from openafm.evaluation.suite.choices import LOCAL, items, local, run
from openafm.evaluation.suite.items import by_metric, estimate
from openafm.evaluation.suite.material import Material, spread
from openafm.serving.exporting import export
from openafm.serving.opening import latest_model

MOST = 0.5
"""Points that the scores may lie apart: of 100 for shares, of a hundredth of a bit for bits per byte."""


def exported(model: Path, folder: Path) -> Any:
    """The harness's own class over the model's export."""
    from lm_eval.models.huggingface import HFLM

    export(model, folder, "hf", None, "f32", None)
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)


def main() -> None:
    chosen = options(__doc__, model="runs/device/import", items=100, tasks=",".join(LOCAL))
    torch.manual_seed(0)
    console, material = Console(width=120), Material()
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = latest_model(Path(chosen.model))
        classes = {"openafm": OpenAFM(folder, batch_size=8), "hf": exported(folder, Path(temporary) / "hf")}
        for name in chosen.tasks.split(","):
            what, read, settings = LOCAL[name]
            config = local(name, spread(read(material), chosen.items), settings, Path(temporary))
            found, seconds, answers = {}, {}, {}
            for kind, lm in classes.items():
                started = time.perf_counter()
                results = run(lm, config, None)
                seconds[kind] = time.perf_counter() - started
                found[kind] = {metric: estimate(part) for metric, part in by_metric(items(results)).items()}
                (samples,) = results["samples"].values()
                answers[kind] = [str(sample["filtered_resps"]) for sample in samples]
            for metric, ours in found["openafm"].items():
                theirs = found["hf"][metric]
                gap = 100 * abs(ours.value - theirs.value)
                worst = max(worst, gap)
                same = sum(a == b for a, b in zip(answers["openafm"], answers["hf"], strict=True))
                rows.append((name, what, metric, ours, theirs, gap, same, seconds))
    table = Table(title=f"{folder}: the same tasks through two model classes [95% interval]", title_justify="left")
    for heading in ("task", "metric", "n", "openafm", "hf", "apart, points", "seconds, openafm / hf"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for name, _, metric, ours, theirs, gap, _, seconds in rows:
        shown = [f"{e.value:.4f} [{e.low:.4f}, {e.high:.4f}]" for e in (ours, theirs)]
        spent = f"{seconds['openafm']:.0f} / {seconds['hf']:.0f}"
        table.add_row(name, metric, str(ours.n), *shown, f"{gap:.4f}", spent)
    console.print(table)
    generated = next((row for row in rows if row[0] == "openafm_squad"), None)
    if generated:
        console.print(f"{generated[6]} of {generated[3].n} generated answers are the same, letter for letter")
    if chosen.json:
        detail = {f"{row[0]}/{row[2]}": {"openafm": row[3].value, "hf": row[4].value, "n": row[3].n} for row in rows}
        print(json.dumps({"name": "harness-bridge", "unit": "points apart", "ours": round(worst, 4), "peers": {"hf": 0},
                          "limit": MOST, "detail": detail, "machine": machine()}))  # fmt: skip
    sys.exit(1 if worst > MOST else 0)


if __name__ == "__main__":
    main()
