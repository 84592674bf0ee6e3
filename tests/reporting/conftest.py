"""A fabricated run: small artifacts of every step that the report reads, with hostile text in them."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

HOSTILE = '<script>alert(1)</script><img src="https://evil.example/x">{{ 7*7 }}'
ROOT = Path(__file__).parents[2]
FLOWS = ("code", "math", "web")


def _json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _rate(passed, n):
    return {"passed": passed, "n": n, "rate": passed / n, "low": passed / n - 0.08, "high": passed / n + 0.08}


def _data(run):
    funnel = []
    reasons = ("robots robots", "clean pii.card", "clean adult", "dedup near", "quality low", " kept")
    for i, (stage, reason) in enumerate(pair.split(" ") for pair in reasons):
        for j, flow in enumerate(FLOWS):
            real, planted = 20 + 40 * (not stage) + 7 * i + j, 0 if not stage else 3
            funnel.append({"stage": stage, "reason": reason, "flow": flow, "documents": real + planted}
                          | {"bytes": 5000 * (real + planted), "planted": planted, "real": real})  # fmt: skip
    for i, step in enumerate(("extract", "clean", "dedup", "quality", "decontaminate")):
        seen = ("robots", "clean", "dedup", "quality", "decontaminate")[: i + 1]
        _json(run / step / "funnel.json", [e for e in funnel if e["stage"] in seen or not e["stage"]])
    caught = {
        "card": {"planted": 20, "caught": 19, "recall": 0.95},
        "email": {"planted": 30, "caught": 30, "recall": 1.0},
    }
    labelled = {"redacted.email": (31, 18, 2), "redacted.card": (2, 0, 0), "repetitive": (7, 3, 3)}
    precision = {
        reason: {"hits": hits, "true": right, "false": wrong} for reason, (hits, right, wrong) in labelled.items()
    }
    copies = {"near_copy": {"planted": 12, "found": 11}}
    audited = {
        "id": "a",
        "url": "https://sqlite.docs.example/a",
        "flow": "web",
        "reason": "pii.card",
        "evidence": HOSTILE,
    }
    _lines(run / "clean" / "audit.jsonl", [audited | {"text": ""}])
    flows = {flow: {"documents": 90, "characters": 400_000, "bytes_per_token": 2.9} for flow in FLOWS}
    return {
        "fetch": {"pages": 2500, "tiers_missing": {"apt": "no apt-get here"}, "sources_missing": {}},
        "extract": {"documents": 2500},
        "clean": {"planted_recall": caught, "precision_on_real": precision},
        "dedup": {"planted": copies},
        "judge": {"judged": 120, "agreement_with_itself": 0.86},
        "quality": {"auc": 0.81},
        "decontaminate": {"ngrams": 90_000, "planted": {"benchmark": {"planted": 9, "caught": 9, "recall": 1.0}}},
        "tokenizer": {"vocab_size": 2048, "flows": flows},
    }


def _learning(run):
    rng = random.Random(0)
    metrics = {}
    for step, start, end in (
        ("teacher", 7.6, 3.6), ("masks", 3.9, 3.7), ("distil", 4.6, 3.9), ("scratch", 7.6, 4.1),
        ("continued", 3.9, 3.5), ("scratch_continued", 4.1, 3.6), ("long", 3.5, 3.45),
    ):  # fmt: skip
        curve = [end + (start - end) * math.exp(-i / 8) + rng.gauss(0, 0.03) for i in range(40)]
        rows = [{"step": 6 * i, "tokens": 12_000 * i, "loss": y, "cross_entropy": y} for i, y in enumerate(curve)]
        _lines(run / step / "metrics.jsonl", rows)
        metrics[step] = {
            "epochs": {"web": 0.8, "code": 1.7, "math": 2.5},
            "parameters": 2_800_000 if step == "teacher" else 1_050_000,
            "tokens": 480_000,
            "steps": 240,
            "rope_base": 500.0,
            "skipped_steps": 0,
        }
    numbers = np.random.default_rng(0)
    importance = numbers.random((4, 96)).astype(np.float32)
    noisy = importance + 0.15 * numbers.standard_normal(importance.shape)
    masks = (noisy >= np.sort(noisy, 1)[:, -24][:, None]).astype(np.float32)
    save_file({"masks": masks, "importance": importance, "scores": importance}, run / "masks" / "masks.safetensors")
    losses = {"uncut teacher": 3.6, "learned masks and weights": 3.7, "magnitude units": 5.2, "random units": 6.4}
    metrics["teacher_tokens"] = {"tokens": 480_000}
    metrics["prune"] = {"held_out_loss": losses, "held_out_tokens": 16_384, "logit_difference": 3e-7}
    return metrics


def _aligning(run):
    shares = {
        "examples": 9000,
        "human_share": 0.3,
        "synthetic_share": 0.7,
        "human_share_of_characters": 0.5,
        "parts": {},
    }
    mixture = {"parts": {"math": {"kept": 6000, "exact_copies": 40}, "human": {"kept": 3000, "contaminated": 2}}}
    _json(
        run / "sft_mixture" / "mixture.json", mixture | {"train": shares, "heldout": shares, "arms": {"equal": shares}}
    )
    _lines(run / "sft" / "metrics.jsonl", [{"tokens": 2048 * i, "loss": 2 / (i + 1)} for i in range(20)])
    strengths = {
        name: {**_rate(60 + 7 * i, 100), "target": 0.65 + 0.1 * i, "expected": 0.6 + 0.1 * i}
        for i, name in enumerate(("negligible", "slight", "better", "significant"))
    }
    grades = {
        name: _rate(150, 200) for name in ("instruction following", "truthfulness", "harmlessness", "conciseness")
    }
    measured = {"accuracy": _rate(290, 400), "by_strength": strengths, "grades": grades}
    measured |= {"commonest_grade": dict.fromkeys(grades, 0.6), "length_bias": {"reward": -0.2, "label": -0.25}}
    _json(run / "reward" / "heldout.json", measured)
    compared = {
        **_rate(120, 256),
        "reward": 1.5,
        "tokens": 8.2,
        "tasks": {"add": _rate(40, 80), "copy": _rate(80, 176)},
    }
    for step, best, right in (("committee", "dpo", 120), ("committee_2", "mdloo", 150)):
        members = {
            name: {"validation": compared, "heldout": compared | _rate(right + 10 * (name == best), 256)}
            for name in ("sft", "rejection", "dpo", "mdloo", "control")
        }
        _json(run / step / "committee.json", {"best": best, "members": members})
    for step, members in (("rollouts", ("sft_best", "sft_last")), ("rollouts_2", ("dpo", "sft_best"))):
        rows = [{"member": member, "completions": [{"reward": 0.1 * i + j} for j in range(2)]}
                for i in range(8) for member in members]  # fmt: skip
        _lines(run / step / "rollouts.jsonl", rows)
    _lines(run / "mdloo" / "iterations.jsonl",
           [{"iteration": i, "reward": 0.5 + 0.01 * i, "kl_reference": 0.1 * i} for i in range(6)])  # fmt: skip
    point = {"reward": 0.5, "best_of_n": _rate(30, 64), "single": _rate(20, 64)}
    return {
        "sft_mixture": mixture,
        "math_data": {"yield": {"writer-wider": {"made": 40, "kept": 3}}, "headline": HOSTILE},
        "sft": {"answer_loss": 0.7},
        "sft_arms": {"arm": "equal", "arms": {"equal": _rate(30, 64), "more_math": _rate(25, 64)}},
        "sft_best": {"checkpoint": "step_200", "checkpoints": {"step_100": point, "step_200": point}},
        "preferences": {"mapping": "margin 1 -> negligible; margin 4 or more -> significant"},
        "reward": {"pairs": 800, "heldout": measured},
        "rollouts": {
            "members": {"sft_best": {"reward": 0.5, **_rate(30, 96)}, "sft_last": {"reward": 0.4, **_rate(20, 96)}}
        },
        "rollouts_2": {"members": {"dpo": {"reward": 0.61, **_rate(44, 96)}}},
        "mdloo": {"steps": 6},
        "committee": {"best": "dpo"},
        "committee_2": {"best": "mdloo"},
    }


def _fitting(run):
    names = [f"model.layers.{i}.{part}_proj" for i in range(4) for part in ("self_attn.q", "mlp.down")]
    layers = {
        name: {"bits": 2 + 2 * (i % 3 > 0), "kl_at_2_bits": 0.02 * (i + 1), "error": 0.1}
        for i, name in enumerate(names)
    }
    losses = {
        "base": 2.5,
        "base_and_adapter": 2.48,
        "quantized": 2.7,
        "quantized_and_start": 2.6,
        "quantized_and_adapter": 2.53,
    }
    _lines(
        run / "summariser" / "answers.jsonl",
        [{"id": "s1", "reference": "a tool", "parent": HOSTILE, "adapter": "tool"}],
    )
    rouge = {f"rouge_{name}": 0.2 for name in ("adapter", "parent", "lead_1")}
    judge = {"preferred": 0.25, "preferred_interval": [0.1, 0.4]}
    scores = {"rouge_l": 0.251, "rouge_l_interval": [0.208, 0.294]}
    quantized = {"name": "quantized", "prompt": "plain", "all": scores, "mails": scores, "judge": None}
    gained = scores | {"gain": 0.91, "gain_interval": [0.51, 1.43]}
    adapter = quantized | {"name": "adapter, by people", "prompt": None, "all": gained, "judge": judge}
    rows = {"rows": [quantized, adapter], "judge_checks": {HOSTILE: judge}}
    return {
        "compress": {"projection_bits_per_weight": 3.62, "kl": 0.08, "kl_interval": [0.07, 0.09], "layers": layers}
        | {"kl_by_bits": [[2.1, 0.4], [3.0, 0.1], [4.1, 0.0]]},
        "recovery_8": {"rank": 8, "bits_per_byte": losses, "kl_adapted": 0.1, "regained": 0.5},
        "recovery": {"rank": 16, "heldout_tokens": 16_384, "bits_per_byte": losses}
        | {"kl_quantized": 0.2, "kl_adapted": 0.06, "regained": 0.77, "regained_interval": [0.7, 0.84]},
        "summariser": rouge | {"rouge_n": 64, "rouge_adapter_interval": [0.17, 0.23]},
        "side_by_side": {"texts": {"mails": 40}, "sources": 21, **rows},
    }  # fmt: skip


def _evaluations(run):
    rng = random.Random(1)
    for i, model in enumerate(
        (
            "teacher",
            "prune",
            "distil",
            "scratch",
            "continued",
            "scratch_continued",
            "long",
            "sft_best",
            "committee",
            "compress",
            "recovery",
        )
    ):
        folder = run / f"evaluate_{model}"
        rows = []
        for flow in (*FLOWS, "all"):
            bits, top = 2.6 + rng.uniform(-0.2, 0.2), 0.3 + rng.uniform(-0.05, 0.05)
            rows.append(
                {"metric": f"bits_per_byte/{flow}", "value": bits, "low": bits - 0.1, "high": bits + 0.1, "n": 16}
            )
            rows.append({"metric": f"top1/{flow}", "value": top, "low": top - 0.02, "high": top + 0.02, "n": 16})
        if i > 6:
            for task in ("add", "copy", "all"):
                rows.append({"metric": f"task/{task}", "value": 0.4, "low": 0.3, "high": 0.5, "n": 32})
            asked = {"id": "p", "task": "add", "question": f"1 + 1 = {HOSTILE}", "answer": "2", "passed": True}
            _lines(folder / "answers.jsonl", [asked])
        if model in ("continued", "long"):
            for at, loss in (("0000-0064", 3.9), ("0064-0128", 3.6), ("0128-0256", 3.4), ("0256-1024", 3.8)):
                rows.append({"metric": f"loss_at/{at}", "value": loss, "low": loss - 0.1, "high": loss + 0.1, "n": 8})
            for depth in ("0", "0.5", "1"):
                rows.append({"metric": f"needle/{depth}", "value": 0.4, "low": 0.2, "high": 0.6, "n": 16})
        samples = [{"prompt": "The function returns", "text": HOSTILE}]
        _json(folder / "evaluation.json", {"model": model, "parameters": 1_050_000, "rows": rows, "samples": samples})
        windows = [
            {
                "flow": "web",
                "tokens": 256,
                "bytes": 700,
                "nats": 900 + 5 * w + 10 * i,
                "correct": 70 + w + rng.randint(0, 9),
            }
            for w in range(16)
        ]
        _lines(folder / "windows.jsonl", windows)
        yield f"evaluate_{model}", {}


STAGES = {
    "pretrain": ("teacher", "distil", "scratch", "continued", "scratch_continued", "long"),
    "learn_masks": ("masks",),
    "cache_teacher": ("teacher_tokens",),
    "committee": ("committee", "committee_2"),
    "rollouts": ("rollouts", "rollouts_2"),
    "recovery": ("recovery", "recovery_8"),
    "task_adapter": ("summariser",),
    "summary_table": ("side_by_side",),
    "ablation_table": ("table",),
}
INPUTS = {
    "masks": {"model": "teacher"},
    "prune": {"model": "masks"},
    "teacher_tokens": {"model": "teacher"},
    "distil": {"model": "prune", "teacher_tokens": "teacher_tokens"},
    "continued": {"model": "distil"},
    "scratch_continued": {"model": "scratch"},
    "long": {"model": "continued"},
    "reward": {"preferences.first": "preferences"},
    "mdloo": {"model": "sft_best", "reward": "reward"},
    "committee": {"members.dpo": "dpo", "control": "sft_control"},
    "committee_2": {"members.mdloo": "mdloo"},
    "compress": {"model": "committee/model"},
    "recovery": {"model": "committee", "package": "compress"},
}


def _stage(step):
    named = {name: stage for stage, names in STAGES.items() for name in names}
    return "evaluate" if step.startswith("evaluate_") else named.get(step, step)


@pytest.fixture
def run(tmp_path):
    """The run's folder, every step done."""
    folder = tmp_path / "nano"
    metrics = {
        **_data(folder),
        **_learning(folder),
        **_aligning(folder),
        **_fitting(folder),
        **dict(_evaluations(folder)),
        "table": {"shown": 1},
        "coordinates": {"headline": "steepest slope"},
    }
    ours = ROOT / "docs/results/ablations/lr-transfer/results.json"  # a real ablation's
    measured = json.loads(ours.read_text())
    _json(folder / "table" / "results.json", measured)
    _json(folder / "coordinates" / "coordinates.json", measured["coordinates"])
    configs = {
        "table": yaml.safe_load((ROOT / "recipes/ablations/lr-transfer.yaml").read_text())["steps"]["table"]["with"]
    }
    configs |= {step: {"mixture": {"web": 0.7, "code": 0.2, "math": 0.1}} for step in STAGES["pretrain"]}
    figures = {"one sequence": [29.0, 30.0, 29.5], "prefill of 512": [210.0, 200.0, 205.0]}
    detail = {"weights_mb": 1357.0, "read_gb_a_second_plain": 40.4}
    decode = {"name": "decode", "unit": "tokens/s", "limit": 29.8, "figures": figures, "detail": detail, "machine": {}}
    _json(folder / "benchmarks" / "decode.json", decode | {"command": "openafm bench decode --keep runs/nano"})
    for i, (step, found) in enumerate(metrics.items()):
        manifest = {
            "step": step,
            "stage": _stage(step),
            "config": configs.get(step, {"label_noise": 0.05}),
            "inputs": {name: {"step": other, "digest": ""} for name, other in INPUTS.get(step, {}).items()}
            | ({"model": {"step": step.removeprefix("evaluate_"), "digest": ""}} if "evaluate" in step else {}),
            "metrics": found,
            "notes": {},
        }
        manifest |= {"times": {"started": 1.0, "seconds": 10.5 + i}, "planned_seconds": 12.0, "peak_memory_mb": 700.0}
        manifest |= {"outputs": {"x": {"sha256": "", "bytes": 2_000_000}}, "versions": {"torch": "2.13.0"}}
        _json(folder / step / "manifest.json", manifest)
    steps = [{"name": step, "stage": step, "inputs": {}, "planned_seconds": 12.0} for step in metrics]
    machine = {"system": "Linux", "python": "3.11", "cpu_count": 2}
    _json(
        folder / "run.json",
        {"title": "nano", "command": ["nano"], "machine": machine, "hardware": {"threads": 2}, "steps": steps},
    )
    return folder
