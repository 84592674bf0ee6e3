"""The three stages after each other on a tiny real model, and the package they write."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from openafm.adapters.lora import load_adapter
from openafm.adapters.store import AdapterStore
from openafm.compression.calibration import compare, read_windows, readings
from openafm.compression.compress import CompressConfig, compress, sensitivities
from openafm.compression.feedback import eliminate, palettize_with_feedback
from openafm.compression.package import sizes, verify_package
from openafm.compression.recovery import RecoveryConfig, recovery, regained, residual_adapter
from openafm.compression.task_adapter import TaskAdapterConfig, lead_1, mean_loss, split, start, task_adapter
from openafm.engine import TorchEngine, open_package
from openafm.model.checkpoint import load_model
from openafm.stage import Context, Hardware
from openafm.tokenizer import load
from openafm.training.batches import ExampleBatches
from openafm.training.losses import next_token

SMALL = {"calibration_tokens": 512, "heldout_tokens": 512}
COMPRESS = CompressConfig(target_bits=4.0, length=32, sensitivity_tokens=256, **SMALL)
RECOVER = RecoveryConfig(
    rank=4, alpha=4, tokens=2048, example_tokens=512, sequence_length=64, batch_tokens=256, **SMALL
)
TASK = TaskAdapterConfig(tokens=1024, sequence_length=64, batch_tokens=256, checks=2, test_examples=4, max_tokens=4)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def compressed(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("compressed")
    (root / "out").mkdir()
    metrics = compress(COMPRESS, Context(root / "out", root / "s"), model=world / "model", shards=world / "shards")
    return root / "out", metrics


@pytest.fixture(scope="module")
def recovered(world, compressed, tmp_path_factory):
    root = tmp_path_factory.mktemp("recovered")
    (root / "out").mkdir()
    inputs = {"package": compressed[0], "model": world / "model", "shards": world / "shards"}
    metrics = recovery(RECOVER, Context(root / "out", root / "s"), **inputs, examples=world / "examples")
    return root / "out", metrics


def test_compress_meets_its_target_and_says_both_averages(compressed, world):
    out, metrics = compressed
    assert 3.4 < metrics["projection_bits_per_weight"] <= 4.0 < metrics["package_bits_per_weight"]
    assert {layer["bits"] for layer in metrics["layers"].values()} == {2, 4}
    assert metrics["kl"] > 0 and metrics["heldout_windows"] * 32 == metrics["heldout_tokens"]
    package = open_package(out)
    base = load_model(world / "model")
    assert load(package.folder).encode("a cat") == load(world / "tokenizer").encode("a cat")
    change = {n: (package.model().get_parameter(n) - w).abs().max() for n, w in base.state_dict().items()}
    assert all(change[n] == 0 for n in change if "norm" in n) and all(change[n] > 0 for n in change if "proj" in n)
    assert change["model.embed_tokens.weight"] <= base.model.embed_tokens.weight.abs().max() / 127
    assert json.dumps(metrics) and sizes(package)["megabytes"] < 0.03


def test_compress_is_deterministic(compressed, world, make_context):
    context = make_context("again")
    metrics = compress(COMPRESS, context, model=world / "model", shards=world / "shards")
    assert metrics == compressed[1] and digests(context.out) == digests(compressed[0])


@pytest.mark.parametrize("file", ["weights.safetensors", "tokenizer.model", "header.json", "tokenizer_config.json"])
def test_a_flipped_bit_is_found_and_named(compressed, tmp_path, file):
    shutil.copytree(compressed[0], tmp_path / "copy")
    path = tmp_path / "copy" / "model.afm" / file
    original = path.read_bytes()
    for where in (0, len(original) // 3, len(original) - 3):
        data = bytearray(original)
        data[where] ^= 4
        path.write_bytes(data)
        with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
            open_package(tmp_path / "copy")
    path.unlink()
    with pytest.raises(ValueError, match=r"missing|holds no package"):
        open_package(tmp_path / "copy")


def test_a_newer_version_is_refused(compressed, tmp_path):
    shutil.copytree(compressed[0], tmp_path / "copy")
    path = tmp_path / "copy" / "model.afm" / "header.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="format version 2, this program reads 1"):
        open_package(tmp_path / "copy")


def test_the_pack_is_checked_against_the_unpacked_weights(compressed):
    package = open_package(compressed[0])
    projections = {name: package.projection(name) for name in package.layers}
    rest = {n: t.numpy() for n, t in package.model().state_dict().items() if "norm" in n}
    verify_package(package, projections, package.embedding(), rest)
    name = sorted(projections)[0]
    projections[name] = replace(projections[name], tables=projections[name].tables + np.float16(1))
    with pytest.raises(ValueError, match=f"{name}.weight does not unpack"):
        verify_package(package, projections, package.embedding(), rest)


def test_recovery_lowers_the_loss_and_ships_what_it_measured(recovered, compressed, world):
    out, metrics = recovered
    loss = metrics["bits_per_byte"]
    assert loss["quantized_and_adapter"] < loss["quantized"] and metrics["kl_adapted"] < metrics["kl_quantized"]
    assert metrics["training_tokens"] == {"pretraining": 2048, "post-training": 512}
    package, before = open_package(out), open_package(compressed[0])
    assert package.adapters.names() == ["recovery"] and before.adapters.names() == []
    assert package.adapters.card("recovery")["metrics"]["regained"] == metrics["regained"]
    assert (package.folder / "header.json").read_bytes() == (before.folder / "header.json").read_bytes()
    assert metrics["package_bits_per_weight"] > sizes(before)["package_bits_per_weight"]


def test_recovery_with_kl_from_zero(compressed, world, make_context):
    config = RECOVER.model_copy(update={"loss": "kl", "start": "zero", "tokens": 4096})
    inputs = {"package": compressed[0], "model": world / "model", "shards": world / "shards"}
    metrics = recovery(config, make_context("kl"), **inputs)
    loss = metrics["bits_per_byte"]
    assert metrics["kl_adapted"] < metrics["kl_quantized"] and loss["base"] == loss["base_and_adapter"]
    assert loss["quantized_and_start"] == loss["quantized"]


def test_one_run_serves_nested_ranks(compressed, world, make_context):
    config = RECOVER.model_copy(update={"loss": "both", "nested": (1, 2)})
    inputs = {"package": compressed[0], "model": world / "model", "shards": world / "shards"}
    context = make_context("nested")
    metrics = recovery(config, context, **inputs)
    loss = metrics["bits_per_byte"]
    assert loss["quantized_and_adapter"] < loss["quantized"] and metrics["kl_adapted"] < metrics["kl_quantized"]
    store, control = open_package(context.out).adapters, AdapterStore(context.out / "control")
    assert store.names() == ["recovery", "recovery-1", "recovery-2"]
    assert control.names() == ["control", "control-1", "control-2"]
    for adapters, name in ((store, "recovery"), (control, "control")):
        whole, part = adapters.load(name), adapters.load(f"{name}-2")
        assert (part.rank, part.alpha / part.rank) == (2, whole.alpha / whole.rank)
        for key, tensor in part.state.items():
            kept = whole.state[key][:2] if key.endswith("lora_a") else whole.state[key][:, :2]
            assert torch.equal(tensor, kept)
    windows = read_windows(world / "shards", "heldout", 64, 512)
    engine = TorchEngine.load(context.out)
    kl = [np.mean(compare(engine.use(n), load_model(world / "model"), windows).kl) for n in (None, *store.names()[1:])]
    assert max(kl[1:]) < kl[0]  # each part helps by itself
    with pytest.raises(ValueError, match="must lie between 0 and the rank 4"):
        recovery(config.model_copy(update={"nested": (8,)}), make_context("bad-ranks"), **inputs)


def test_where_all_may_have_4_bits_nothing_is_measured(world, make_context):
    config = COMPRESS.model_copy(update={"target_bits": 4.6})
    metrics = compress(config, make_context("uniform"), model=world / "model", shards=world / "shards")
    assert all(set(layer) == {"bits", "error"} and layer["bits"] == 4 for layer in metrics["layers"].values())


def test_the_residual_adapter_is_the_best_low_rank_fit(compressed, world):
    base, quantized = (
        m.requires_grad_(False) for m in (load_model(world / "model"), open_package(compressed[0]).model())
    )
    quantized.model.embed_tokens.weight.data = base.model.embed_tokens.weight.data
    windows = read_windows(world / "shards", "train", 32, 2048)
    name = "model.layers.0.self_attn.q_proj"  # whose inputs are the base's: nothing before it is to be made up for
    inputs = []
    handle = base.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    base(windows.tokens[:, :-1])
    handle.remove()
    x = torch.cat(inputs).double()
    residual = (base.linears()[name].weight - quantized.linears()[name].weight).double()
    state = residual_adapter(base, quantized, windows, 4, 8.0, Hardware())
    fit = 8.0 / 4 * state[f"{name}.lora_b"].double() @ state[f"{name}.lora_a"].double()
    outputs = x @ residual.T
    # no matrix of rank 4 comes closer to the lost outputs than their own first four components
    left = torch.linalg.svdvals(outputs)[4:].square().sum()
    assert left * (1 - 1e-6) <= (outputs - x @ fit.T).square().sum() <= left * 1.05
    # a rank as large as the layer restores the unquantized model
    load_adapter(quantized, residual_adapter(base, quantized, windows, 64, 64.0, Hardware()), 64.0)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(quantized(tokens), base(tokens), atol=1e-3, rtol=1e-3)


def test_regained_share():
    assert regained([3.0, 5.0], [2.5, 4.0], [2.0, 4.0], 0)["regained"] == pytest.approx(1.5 / 2)
    low, high = regained([3.0, 5.0], [2.5, 4.0], [2.0, 4.0], 0)["regained_interval"]
    assert low <= 0.75 <= high
    assert regained([1.0], [0.9], [1.1], 0)["regained"] is None


def test_task_adapter_starts_from_recovery_and_is_switched_by_name(recovered, world, make_context):
    context = make_context("task")
    metrics = task_adapter(TASK, context, package=recovered[0], examples=world / "examples")
    package = open_package(context.out)
    assert package.adapters.names() == ["recovery", "summaries"]
    assert package.adapters.card("summaries")["parent"] == "recovery"
    losses = metrics["validation_loss"]
    assert str(metrics["kept_step"]) == min(losses, key=losses.get) and losses[str(metrics["kept_step"])] < losses["0"]
    assert metrics["rouge_n"] == 4 == len((context.out / "answers.jsonl").read_text().splitlines())
    engine = TorchEngine.load(context.out)
    prompt = load(package.folder).render_chat([{"role": "user", "content": "the cat sees"}])
    logits = {name: engine.use(name)(torch.tensor([prompt])).detach() for name in (None, "recovery", "summaries", None)}
    assert len({round(float(value.sum()), 3) for value in logits.values()}) == 3
    again = make_context("task-again")
    assert task_adapter(TASK, again, package=recovered[0], examples=world / "examples") == metrics
    assert digests(again.out) == digests(context.out)


def test_a_smaller_rank_starts_from_the_parents_first_components(recovered, world, make_context):
    context = make_context("small")
    config = TASK.model_copy(update={"rank": 2, "tokens": 256})
    task_adapter(config, context, package=recovered[0], examples=world / "examples")
    made = open_package(context.out).adapters.load("summaries")
    assert (made.rank, made.alpha, made.parent) == (2, 2.0, "recovery")
    store = open_package(recovered[0]).adapters
    whole, (name, cut) = store.load("recovery"), start(store, "recovery", 2)
    assert name == "recovery" and all(
        torch.equal(cut.state[key], half[:2] if key.endswith("lora_a") else half[:, :2])
        for key, half in whole.state.items()
    )
    with pytest.raises(ValueError, match="rank 8: adapter 'recovery' that training starts from has rank 4"):
        start(store, "recovery", 8)


def test_training_ends_when_the_validation_loss_rises(recovered, world, make_context):
    """With a rate that ruins the adapter each check is worse than none."""
    config = TASK.model_copy(update={"tokens": 4096, "checks": 8, "lr": 30.0, "patience": 2})
    inputs = {"package": recovered[0], "examples": world / "examples"}
    context, broken = make_context("early"), make_context("broken-early")
    metrics = task_adapter(config, context, **inputs)
    losses = metrics["validation_loss"]
    assert len(losses) == 3 and metrics["kept_step"] == 0 and min(losses, key=losses.get) == "0"
    parent, kept = (
        open_package(f).adapters.load(n) for f, n in ((recovered[0], "recovery"), (context.out, "summaries"))
    )
    assert all(torch.equal(parent.state[key], kept.state[key]) for key in parent.state)
    with pytest.raises(Killed):
        task_adapter(config, killing(broken, "task", 2), **inputs)
    assert task_adapter(config, broken, **inputs) == metrics and digests(broken.out) == digests(context.out)
    patient = task_adapter(config.model_copy(update={"patience": None}), make_context("patient"), **inputs)
    assert len(patient["validation_loss"]) == 9


def test_held_out_examples_of_the_data_are_the_test(recovered, world, tmp_path, make_context):
    rows = (world / "examples" / "examples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "examples.jsonl").write_text("".join(rows[:50]))
    (tmp_path / "heldout.jsonl").write_text("".join(rows[50:]))
    metrics = task_adapter(TASK, make_context("held"), package=recovered[0], examples=tmp_path)
    assert metrics["examples"]["test"] == 10 and metrics["examples"]["train"] > 40


class Killed(BaseException):
    """Stands for kill -9."""


def killing(context, label, step):
    def report(running, done, _total):
        if running.startswith(label) and done == step:
            raise Killed

    return replace(context, report=report)


def told(context):
    """The context, and the training that it is going to be told of."""
    steps = []

    def report(running, done, _total):
        if " loss " in running:
            steps.append((running.split()[0], done))

    return replace(context, report=report), steps


def test_killed_stages_go_on_to_the_same_bytes(recovered, compressed, world, make_context):
    inputs = {"package": compressed[0], "model": world / "model", "shards": world / "shards"}
    context = make_context("recovery")
    with pytest.raises(Killed):
        recovery(RECOVER, killing(context, "control-pretraining", 3), **inputs, examples=world / "examples")
    again, steps = told(context)
    assert recovery(RECOVER, again, **inputs, examples=world / "examples") == recovered[1]
    assert {label for label, _ in steps} == {"control-pretraining", "control-post-training"}  # not the adapter's again
    assert digests(context.out) == digests(recovered[0])
    inputs = {"package": recovered[0], "examples": world / "examples"}
    whole, broken = make_context("whole"), make_context("broken")
    task_adapter(TASK, whole, **inputs)
    with pytest.raises(Killed):
        task_adapter(TASK, killing(broken, "task", 3), **inputs)
    again, steps = told(broken)
    task_adapter(TASK, again, **inputs)
    assert steps[0][1] > 2  # the checks are at 2 and 4, each with a checkpoint
    assert digests(broken.out) == digests(whole.out)


def test_no_source_is_in_two_parts():
    examples = [{"id": str(i), "lineage": f"{'writer/' * (i % 2)}synopses/s{i % 10}"} for i in range(50)]
    parts = split(examples, 0.1, 0)
    sources = [{e["lineage"][-2:] for e in part} for part in parts.values()]
    assert [len(s) for s in sources] == [8, 1, 1] and len(set.union(*sources)) == 10
    assert sum(map(len, parts.values())) == 50
    with pytest.raises(ValueError, match="too few"):
        split(examples[:2], 0.1, 0)


def test_mean_loss_is_the_training_loss_of_the_answers(world):
    model = load_model(world / "model").eval()
    pairs = [([2, 5, 9], [11, 12]), ([2, 40], [41, 42, 43, 44])]
    whole = [ExampleBatches([p], sequence_length=16, batch_tokens=16, tokens=16, seed=0, pad_id=0)[0] for p in pairs]
    losses = [next_token(model(b["inputs"]), b["targets"]) for b in whole]
    expected = sum(float(o.loss.detach()) * len(p[1]) for o, p in zip(losses, pairs, strict=True)) / 6
    assert mean_loss(model, pairs) == pytest.approx(expected, rel=1e-5)


def test_first_sentence():
    turn = [{"role": "user", "content": "Sum up: First. Second one."}]
    assert lead_1({"messages": turn}) == "First."
    assert lead_1({"messages": turn, "check": {"source": "Given! Other."}}) == "Given!"
    assert lead_1({"messages": [{"role": "user", "content": "Just this line\nand more"}]}) == "Just this line"


def test_bad_examples_name_the_line(recovered, tmp_path, make_context):
    (tmp_path / "examples.jsonl").write_text('{"messages": [], "answer": ""}\n{"messages": 1}\n')
    with pytest.raises(ValueError, match=r"examples\.jsonl:2"):
        task_adapter(TASK, make_context("bad"), package=recovered[0], examples=tmp_path)
    assert np.isfinite(recovered[1]["kl_adapted"])


def test_sensitivities_are_those_of_the_whole_model_run_anew(world, make_context):
    model = load_model(world / "model").requires_grad_(False)
    calibration, windows = (read_windows(world / "shards", split, 16, 200) for split in ("train", "heldout"))
    groups = dict.fromkeys(model.linears(), 16)
    found = sensitivities(model, calibration, windows, groups, make_context("sensitivities"))
    log_p = F.log_softmax(model(windows.tokens[:, :-1]), -1)
    for reading in readings(model, model, calibration, Hardware()):
        for name in reading.names:
            changed = load_model(world / "model").requires_grad_(False)
            layer = changed.get_submodule(name)
            packed = palettize_with_feedback(layer.weight, eliminate(reading.gram), 2, 16)
            layer.weight.data = torch.from_numpy(packed.dequantize())
            log_q = F.log_softmax(changed(windows.tokens[:, :-1]), -1)
            kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
            assert found[name] == pytest.approx(float(kl), rel=1e-3, abs=1e-7)
    assert found.keys() == set(model.linears())
