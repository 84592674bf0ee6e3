"""The recipes fit and device on the fixture's tiny model, by the verbs' own functions."""

import json
import math
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers
from rich.console import Console
from scipy.stats import ttest_1samp
from torch.nn import functional as F

from openafm import jsonl
from openafm.adapters.lora import load_adapter
from openafm.adapters.store import AdapterStore
from openafm.engine import TorchEngine
from openafm.engine.package import open_package
from openafm.evaluation.fitting import render
from openafm.evaluation.summaries import SummaryTableConfig, summary_table
from openafm.evaluation.summaries import render as render_summaries
from openafm.model.checkpoint import load_model
from openafm.recipe import fitting
from openafm.recipe.recipe import load
from openafm.recipe.runner import run
from openafm.recipe.status import of_run
from openafm.reporting.report import write_report
from openafm.scoring.rouge import rouge_l
from openafm.serving.exporting import export_hf, export_peft
from openafm.serving.opening import latest_model
from openafm.stage import Context, Hardware
from openafm.synthesis.ready.summary_data import SummaryDataConfig, summary_data
from openafm.training import hardware

QUIET = Console(quiet=True)
MEASURE = {"calibration_tokens": 512, "heldout_tokens": 512}
SMALL = {
    "fetch": {"catalogue": "tiny"},
    "compress": {**MEASURE, "length": 64, "sensitivity_tokens": 128, "target_bits": 4.0},
    "recovery": {**MEASURE, "rank": 8, "alpha": 8.0, "nested": [2, 4], "tokens": 1024, "sequence_length": 64,
                 "batch_tokens": 256},
}  # fmt: skip
TASK = {"tokens": 512, "sequence_length": 256, "batch_tokens": 256, "checks": 2, "test_examples": 2, "max_tokens": 4}
DEVICE = {
    **SMALL,
    "smollm2": {"catalogue": "tiny"},
    "compress_4bit": {**MEASURE, "length": 64, "target_bits": 6.0},
    "table": {"length": 64, "tokens": 512},
    "offgrid": {"tokens": 1024, "sequence_length": 64, "batch_tokens": 256},
    "compress_offgrid": SMALL["compress"],
    "recovery_offgrid": {key: value for key, value in SMALL["recovery"].items() if key != "nested"},
    "table_offgrid": {"length": 64, "tokens": 512},
    "summaries": {"train": 40, "heldout": 8},
    "summariser": TASK,
}


def overrides(steps):
    return [f"{step}.{key}={json.dumps(value)}" for step, config in steps.items() for key, value in config.items()]


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A run of the recipe device, small."""
    root = tmp_path_factory.mktemp("runs")
    recipe = load("device", [*overrides(DEVICE), "steps.import.inputs.model=smollm2/models/writer"])
    run(recipe, root, hardware=Hardware(), console=QUIET)
    return root / "device"


@pytest.mark.parametrize(
    ("domain", "shard"), [("documentation", "shards/heldout/web"), ("code", "unseen/heldout/code")]
)
def test_the_table_is_what_the_models_do(device, domain, shard):
    result = json.loads((device / "table" / "fitting.json").read_text())
    assert [(d["name"], d["unseen"]) for d in result["domains"]] == [("documentation", False), ("code", True)]
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "base", "4-bit", "mixed",
        *(f"mixed + recovery, rank {rank}" for rank in (2, 4, 8)),
        *(f"base + adapter, rank {rank} (control)" for rank in (2, 4, 8)),
    ]  # fmt: skip
    tokens = np.fromfile(device / f"{shard}.bin", "<u2").astype(np.int64)
    count = (len(tokens) - 1) // 64
    starts = np.linspace(0, count - 1, min(count, 8)).round().astype(int) * 64
    windows = torch.from_numpy(np.stack([tokens[start : start + 65] for start in starts]))
    base, mixed = load_model(device / "import"), open_package(device / "recovery").model()
    recovered = open_package(device / "recovery")
    controlled, store = load_model(device / "import"), AdapterStore(device / "recovery" / "control")
    load_adapter(controlled, store.load("control-4").state, store.load("control-4").alpha)
    models = {
        "base": base, "mixed": mixed, "base + adapter, rank 4 (control)": controlled,
        "mixed + recovery, rank 4": TorchEngine.load(device / "recovery").use("recovery-4"),
    }  # fmt: skip
    losses = {}
    with torch.no_grad():
        reference = base(windows[:, :-1]).softmax(-1)
        for name, model in models.items():
            logits = model(windows[:, :-1])
            losses[name] = F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").mean(1)
            kl = (reference * (reference.log() - logits.log_softmax(-1))).sum(-1).mean()
            found = rows[name]["domains"][domain]
            assert found["perplexity"] == pytest.approx(math.exp(losses[name].mean()), rel=1e-3)
            assert found["kl"] == pytest.approx(float(kl), abs=1e-4)
            low, high = found["perplexity_interval"]
            assert low < found["perplexity"] < high
    q, a, c = (losses[name] for name in ("mixed", "mixed + recovery, rank 4", "base + adapter, rank 4 (control)"))
    shown = ttest_1samp(q - c, 0.0).confidence_interval(0.95).low > 0  # else a share of it would be one of chance
    expected = pytest.approx(float((q - a).mean() / (q - c).mean()), abs=0.02) if shown else None
    assert rows["mixed + recovery, rank 4"]["domains"][domain]["regained"] == expected
    weights = (device / "recovery" / "model.afm" / "weights.safetensors").stat().st_size
    card = recovered.adapters.card("recovery-4")
    assert rows["mixed + recovery, rank 4"]["megabytes"] == pytest.approx((weights + card["bytes"]) / 1e6, abs=0.01)
    assert rows["4-bit"]["bits_projections"] > rows["mixed"]["bits_projections"]
    assert rows["base"]["bits_projections"] == 16 and rows["mixed"]["bits_all"] > rows["mixed"]["bits_projections"]


def test_nothing_but_the_table_reads_the_unseen_domain(device):
    recipe = load("device")
    readers = {step.name for step in recipe.steps.values() if "unseen" in step.needs()}
    assert readers == {"table", "table_offgrid"}
    index = json.loads((device / "unseen" / "index.json").read_text())["splits"]
    assert not index["train"]["code"]["tokens"] and set(index["heldout"]) == {"code"}
    assert set(json.loads((device / "shards" / "index.json").read_text())["splits"]["train"]) == {"web"}


def test_the_table_is_printed_and_the_off_grid_base_is_another(device):
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(*render(device / "table_offgrid"))
    text = console.export_text()
    assert "code, never trained on" in text and "mixed + recovery, rank 8" in text and "…" not in text
    page = write_report(device).read_text()
    assert page.count(">mixed + recovery, rank 8<") == 4 and "never trained or calibrated on" in page
    before, after = (load_model(device / step).state_dict() for step in ("import", "offgrid"))
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_summaries_by_people_and_by_a_model_and_their_table(device, tmp_path):
    """The steps of the recipe summaries, on texts of which each package's say its name."""
    names = [f"tool{i}" for i in range(48)]
    sources = tmp_path / "sources" / "human"
    sources.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "lu") for b in ("ka", "me", "ni", "po", "ru")]
    texts = {name: f"{name} sorts and keeps files. {' '.join(rng.choice(words, 20))}." for name in names}
    rows = [
        {"id": f"synopsis/{name}", "source": "apt", "text": text, "summary": f"{name} sorts files"}
        for name, text in texts.items()
    ]
    mails = [
        {**row, "id": f"mail/{name}-src/1", "source": name, "summary": f"{name} keeps files", "from": "Ann", "date": ""}
        for name, row in zip(names, rows, strict=True)
    ]
    built = [{"id": name, "source": f"src{i // 3}", "section": ""} for i, name in enumerate(names)]
    for target, listed in (("synopses", rows), ("mails", mails), ("packages", built)):
        jsonl.write(sources / f"{target}.jsonl", listed)
    context = Context(tmp_path / "data", tmp_path / "s", 1)
    for made in (context.out, context.scratch):
        made.mkdir()
    config = SummaryDataConfig(min_text_words=10, engine="torch", written=1)
    metrics = summary_data(config, context, sources=sources.parent, writer=device / "import")
    human, heldout = (jsonl.read(context.out / "human" / f"{part}.jsonl") for part in ("examples", "heldout"))
    assert metrics["human"] == len(human) > 20 and metrics["heldout"] == len(heldout) > 4
    assert not {row["source"] for row in human} & {row["source"] for row in heldout}
    sides = {row["id"]: {"mails": "mail"}.get(row["kind"]) for row in heldout}
    assert any(side for side in sides.values()) and not all(side for side in sides.values())
    siblings = {built[i]["source"] for i, name in enumerate(names) if f"synopsis/{name}" in sides}
    assert all(row["source"] not in siblings for row in human)
    assert metrics["writer"]["proposed"] == len(human) == metrics["writer"]["kept"] + sum(metrics["rejected"].values())
    table = Context(tmp_path / "table", tmp_path / "t", 1)
    table.out.mkdir()
    result = summary_table(
        SummaryTableConfig(max_tokens=4, judged=3), table, base=device / "import", package=device / "recovery",
        adapters={"made": device / "summariser"}, data=context.out / "human",
    )  # fmt: skip
    found = {row["name"]: row for row in result["rows"]}
    assert list(found) == ["lead-1", "base", "quantized", "recovered", "adapter, made"]
    answers = jsonl.read(table.out / "answers.jsonl")
    expected = np.mean([rouge_l(row["recovered"], row["reference"]) for row in answers])
    assert found["recovered"]["all"]["rouge_l"] == pytest.approx(expected, abs=1e-4)
    assert found["lead-1"]["all"]["rouge_l"] > 0 and found["quantized"]["judge"] is None
    assert set(result["judge_checks"]) == {"people's", "another text's"} and "gain" not in found["quantized"]["all"]
    console = Console(width=180, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render_summaries(table.out))
    assert "adapter, made" in (text := console.export_text()) and "…" not in text


@pytest.fixture(scope="module")
def model(device, tmp_path_factory):
    """The fixture's model where a user might have it."""
    folder = tmp_path_factory.mktemp("mine") / "pet.model"
    shutil.copytree(device / "import", folder)
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def probed(monkeypatch):
    monkeypatch.setattr(hardware, "probe", lambda: (Hardware(), {}))
    monkeypatch.setattr("openafm.recipe.summary._write_report", lambda run: None)


def test_compress_then_adapt_then_adapt_again(model, tmp_path, probed):
    runs = tmp_path / "runs"
    folder = fitting.compress(str(model), runs, overrides(SMALL), "recovery", QUIET)
    assert folder == runs / "pet.model" and latest_model(folder) == folder / "recovery"
    compressed = (folder / "recovery" / "manifest.json").read_bytes()
    data = tmp_path / "mails.jsonl"
    lines = [json.dumps({"text": f"a mail on number {i}", "summary": f"number {i}"}) for i in range(30)]
    data.write_text("\n".join(lines))
    small = [f"defaults.task_adapter={json.dumps(TASK)}"]
    mails, notes = fitting.Wanted("mails", data), fitting.Wanted("notes", data, rank=4)
    assert fitting.adapt(str(model), mails, runs, small, QUIET) == folder / "adapt_mails"
    assert fitting.adapt(str(folder), notes, runs, [], QUIET) == folder / "adapt_notes"
    assert (folder / "recovery" / "manifest.json").read_bytes() == compressed  # nothing was done twice
    names = ["mails", "notes", "recovery", "recovery-2", "recovery-4"]
    assert latest_model(folder) == folder / "adapt_notes" and TorchEngine.load(latest_model(folder)).adapters() == names
    card = open_package(folder / "adapt_notes").adapters.card("notes")
    assert (card["parent"], card["rank"]) == ("recovery-4", 4) and card["metrics"]["rouge_n"] == 2
    assert card["data"].startswith("24 examples, sha256 ")
    assert {state.state for state in of_run(folder)} == {"current"}
    before = open_package(folder / "adapt_notes").adapters.card("mails")["sha256"]
    data.write_text("\n".join(lines[:-5]))
    assert fitting.adapt("pet.model", mails, runs, [], QUIET) == folder / "adapt_notes"
    assert open_package(folder / "adapt_notes").adapters.card("mails")["sha256"] != before
    data.write_text("\n".join([*lines, "{"]))
    with pytest.raises(Exception, match=r"mails\.jsonl:31 is not JSON"):
        fitting.adapt("pet.model", mails, runs, [], QUIET)
    data.write_text("\n".join(lines))
    tags = fitting.Wanted("tags", made=20, name="facts")
    assert fitting.adapt(str(folder), tags, runs, [], QUIET) == folder / "adapt_facts"
    card = open_package(folder / "adapt_facts").adapters.card("facts")
    assert card["data"].startswith("16 examples of tags (16 synthetic), sha256 ")
    assert card["metrics"]["score"] == "F1 of fields" and card["metrics"]["score_adapter"] >= 0


def test_names_that_cannot_be_and_runs_of_other_models(tmp_path, probed, model):
    data = tmp_path / "d.jsonl"
    data.write_text("{}")
    for task in ("../x", "recovery", "recovery-8", "", "a.b", "none"):
        with pytest.raises(ValueError, match="cannot name a task"):
            fitting.adapt(str(model), fitting.Wanted(task, data), tmp_path, [], QUIET)
    with pytest.raises(ValueError, match="does not exist"):
        fitting.adapt(str(model), fitting.Wanted("x", tmp_path / "none"), tmp_path, [], QUIET)
    with pytest.raises(ValueError, match="give examples with --data FILE"):
        fitting.adapt(str(model), fitting.Wanted("x"), tmp_path, [], QUIET)
    (tmp_path / "pet.model").mkdir()
    (tmp_path / "pet.model" / "run.json").write_text(
        json.dumps({"command": ["fit", 'import.model="/other/pet.model"']})
    )
    with pytest.raises(ValueError, match=r"run of import.model=.*other.*--set name="):
        fitting.compress(str(model), tmp_path, [], "recovery", QUIET)
    assert fitting.run_name("owner/A-1B@main") == "A-1B-main" and fitting.run_name("/x/y.gguf") == "y"
    with pytest.raises(ValueError, match="has no name"):
        fitting.run_name("..")


def test_import_is_whole_or_absent(model, tmp_path, monkeypatch):
    folder, what = fitting.import_to(str(model), tmp_path / "models" / "pet")
    assert load_model(folder).config == load_model(model).config and "0.0M parameters" in what
    with pytest.raises(ValueError, match="exists"):
        fitting.import_to(str(model), folder)
    (model / "config.json").rename(model / "config.away")
    try:
        with pytest.raises(ValueError, match=r"no config\.json"):
            fitting.import_to(str(model), tmp_path / "models" / "other")
    finally:
        (model / "config.away").rename(model / "config.json")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["pet"]


def test_uncalibrated_packages_of_a_model_folder_and_of_hugging_faces(model, device, tmp_path):
    folder, what = fitting.compress_uncalibrated(str(model), tmp_path, QUIET)
    assert folder == tmp_path / "pet.model-uncalibrated" and latest_model(folder) == folder and "all unpack" in what
    assert open_package(folder).config == load_model(model).config
    export_hf(device / "import", tmp_path / "theirs")
    theirs, _ = fitting.compress_uncalibrated(str(tmp_path / "theirs"), tmp_path, QUIET)
    state, same = (open_package(found).model().state_dict() for found in (folder, theirs))
    assert all(torch.allclose(state[name], same[name], atol=1e-2) for name in state)  # theirs is in bfloat16
    assert TorchEngine.load(theirs).tokenizer.encode("a b") == TorchEngine.load(folder).tokenizer.encode("a b")
    with pytest.raises(ValueError, match="exists"):
        fitting.compress_uncalibrated(str(model), tmp_path, QUIET)
    with pytest.raises(ValueError, match="openafm import owner/name"):
        fitting.compress_uncalibrated("owner/name", tmp_path, QUIET)
    damaged = shutil.copytree(tmp_path / "theirs", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged"):
        fitting.compress_uncalibrated(str(damaged), tmp_path, QUIET)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_exports_are_what_transformers_and_peft_compute(device, tmp_path):
    tokens = torch.randint(0, 512, (2, 9))
    engine = TorchEngine.load(device / "recovery")
    with torch.no_grad():
        bare, recovered = engine.use(None)(tokens).clone(), engine.use("recovery-4")(tokens).clone()
    export_hf(device / "recovery", tmp_path / "hf")
    export_peft(device / "recovery", tmp_path / "peft", "recovery-4")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(tokens).logits, recovered, atol=0.15, rtol=0.05)  # weights in bfloat16
        assert (adapted(tokens).logits - recovered).abs().mean() < 0.2 * (bare - recovered).abs().mean()
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(tokens).logits, bare, atol=0.15, rtol=0.05)
    export_hf(device / "recovery", tmp_path / "merged", "recovery-4")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, recovered, atol=0.15, rtol=0.05)
    with pytest.raises(ValueError, match="no adapter 'x'"):
        export_peft(device / "recovery", tmp_path / "x", "x")
