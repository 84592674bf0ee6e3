"""Training on several processes (gloo), each forked from the test: the losses and weights are those of one."""

import contextlib
import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.processes import processes

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.posttraining.direct import DirectConfig, direct_loss
from openafm.posttraining.examples import RowBatches, answer_row
from openafm.posttraining.mdloo import mdloo_step
from openafm.stage import Context, Hardware, Parallelism
from openafm.training.batches import TokenBatches
from openafm.training.checkpoints import MARK
from openafm.training.context import part_of, positions
from openafm.training.loop import train
from openafm.training.losses import LossOutput, chunked_distillation, next_token
from openafm.training.optimizers import AdamW, RMSPropMomentum
from openafm.training.parallel import Devices, DifferError, bits, local, sizes
from openafm.training.schedules import constant, cosine

CONFIG = ModelConfig(
    vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48, rope_base=500.0, max_length=32
)
MESHES = {
    "shard 2": (2, {}),
    "replicate 2 x shard 2": (4, {"replicate": 2}),
    "shard 2 x tensor 2": (4, {"tensor": 2}),
    "shard 2 x context 2": (4, {"context": 2}),
    "context 2 x tensor 2, recomputed": (4, {"tensor": 2, "context": 2, "recompute": True}),
}


def run(folder, shards, parallelism=None, *, steps=12, rank=0, dropout=0.0, **options):
    """A short training run; its curve, and its model."""
    model = initialise(Transformer(CONFIG, dropout), 0)
    batches = TokenBatches(shards, {"web": 2, "code": 1}, sequence_length=16, batch_tokens=128, tokens=128 * 12, seed=0)
    optimizer = RMSPropMomentum(parameter_groups(model, 16), 0.02, 1e-3)
    context = Context(folder, folder / f"scratch-{rank}", shared=folder / "shared")
    context.parallelism = Parallelism(**(parallelism or {}))
    context.hardware = Hardware(micro_batch_tokens=32)
    curve = train(
        model,
        batches,
        lambda m, b: next_token(m(b["inputs"]), b["targets"], 1e-4),
        optimizer,
        cosine(128 * 12, 256, 0.01),
        context,
        log_every=1,
        **options,
    )
    return curve, model


def work(rank, folder, shards, parallelism):
    curve, model = run(folder, shards, parallelism, rank=rank)
    if rank == 0:
        (folder / "curve.json").write_text(json.dumps(curve))
    torch.save(model.state_dict(), folder / f"weights-{rank}.pt")


@pytest.mark.parametrize("name", MESHES)
def test_losses_and_weights_are_those_of_one_process(name, token_shards, tmp_path):
    count, parallelism = MESHES[name]
    curve, model = run(tmp_path / "alone", token_shards)
    (tmp_path / "many").mkdir()
    processes(count, work, tmp_path / "many", token_shards, parallelism)
    many = json.loads((tmp_path / "many/curve.json").read_text())
    for one, other in zip(curve, many, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    for rank in range(count):
        weights = torch.load(tmp_path / f"many/weights-{rank}.pt")
        for key, value in model.state_dict().items():
            torch.testing.assert_close(weights[key], value, atol=1e-4, rtol=1e-3)


def drifting(rank, folder, shards):
    def flip(network, step: int) -> None:
        if rank == 0 and step:  # every step has a checkpoint: none is left out because the one before is being written
            while not (folder / f"shared/train/step-{step:08d}" / MARK).exists():
                time.sleep(0.01)
            time.sleep(0.2)  # its writer ends
        if rank == 1 and step == 3:
            weight = local(next(network.parameters()).detach())
            weight.view(torch.int32).view(-1)[5] ^= 1

    with pytest.raises(DifferError, match="step 4: the replicas' weights differ between processes"):
        run(folder, shards, {"replicate": 2}, rank=rank, before_step=flip, checkpoint_seconds=0.0)
    if rank == 0:
        kept = sorted((folder / "shared/train").glob("step-*"))
        assert kept and kept[-1].name == "step-00000003"


def test_one_flipped_bit_of_a_replica_ends_training_before_it_is_kept(token_shards, tmp_path):
    processes(2, drifting, tmp_path, token_shards)


@given(st.integers(1, 3), st.integers(0, 200), st.integers(0, 7), st.sampled_from([torch.float32, torch.bfloat16]))
def test_each_flipped_bit_is_seen(tensors, byte, bit, dtype):
    held = [torch.randn(5, 7).to(dtype) for _ in range(tensors)]
    before = bits(held)
    row = held[-1].view(torch.uint8).view(-1)
    row[byte % len(row)] ^= 1 << bit
    assert bits(held) != before


def one_part_each(rank, folder, shards, steps):
    """As `work`, but it stops after some steps, at a checkpoint."""

    class StoppedError(Exception):
        pass

    taken = []

    def stop(network, step: int) -> None:
        taken.append(step)
        if step == steps:
            raise StoppedError

    with contextlib.suppress(StoppedError):
        run(folder, shards, rank=rank, before_step=stop, checkpoint_seconds=0.0)
    return taken


def the_rest(rank, folder, shards, least):
    """As `work`, from a checkpoint: from the start the losses would be the same, too."""
    taken = []
    curve, _ = run(folder, shards, rank=rank, before_step=lambda network, step: taken.append(step))
    assert taken[0] >= least
    if rank == 0:
        (folder / "curve.json").write_text(json.dumps(curve))


def test_a_checkpoint_is_read_on_another_number_of_processes(token_shards, tmp_path):
    """Two processes, then one, then four: the losses of one."""
    curve, _ = run(tmp_path / "alone", token_shards)
    folder = tmp_path / "moved"
    folder.mkdir()
    processes(2, one_part_each, folder, token_shards, 4)
    found = sorted((folder / "shared/train").glob("step-*/checkpoint.json"))
    assert found and len(list(found[-1].parent.glob("*.safetensors"))) == 2
    first, *_ = one_part_each(0, folder, token_shards, 8)
    assert found[-1].parent.name == f"step-{first:08d}"
    processes(4, the_rest, folder, token_shards, first + 1)
    many = json.loads((folder / "curve.json").read_text())
    for one, other in zip(curve, many, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def alignment(rank, folder, parallelism):
    """DPO, MDLOO and distillation: losses of rows and of two models, on rows of unequal length."""
    torch.manual_seed(0)
    rows = [torch.randint(1, 64, (length,)).tolist() for length in (5, 9, 12, 7, 8, 6, 11, 10)]
    pairs = [
        answer_row(row[:3], row[3:], "_chosen") | answer_row(row[:3], row[3:][::-1], "_rejected")
        | {"reference_chosen": -20.0, "reference_rejected": -20.0}
        for row in rows
    ]  # fmt: skip
    answers = [
        answer_row(r[:3], r[3:]) | {"old_log_probs": -4.2 * (len(r) - 3), "advantages": (-1.0) ** i}
        for i, r in enumerate(rows)
    ]
    tokens = [{"inputs": row[:5], "targets": [*row[1:5], 0], "teacher_tokens": row[:5]} for row in rows]

    def distil(model, batch):
        hidden, output = model.hidden(batch["inputs"]), model.model.embed_tokens.weight
        return chunked_distillation(hidden, output, batch["targets"], batch["teacher_tokens"], 1e-4)

    losses = {
        "dpo": (pairs, lambda model, batch: direct_loss(model, batch, DirectConfig())),
        "mdloo": (answers, lambda model, batch: mdloo_step(model, batch, 0.5)),
        "distillation": (tokens, distil),
    }
    curves = {}
    for name, (data, loss) in losses.items():
        model = initialise(Transformer(CONFIG), 0)
        optimizer = AdamW(parameter_groups(model, 32), 3e-3)
        context = Context(folder, folder / f"scratch-{rank}", shared=folder / "shared")
        context.parallelism = Parallelism(**parallelism)
        for label in (name, f"{name} again"):  # the optimizer goes on
            batches = RowBatches(data, rows_per_batch=8, steps=3, seed=0)
            curves[label] = train(model, batches, loss, optimizer, constant(), context, label=label, log_every=1)
    if rank == 0:
        (folder / "curves.json").write_text(json.dumps(curves))


def test_losses_of_alignment_and_distillation(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alignment(0, tmp_path / "one", {})
    processes(2, alignment, tmp_path / "two", {})
    one, two = (json.loads((tmp_path / name / "curves.json").read_text()) for name in ("one", "two"))
    for name in one:
        for first, second in zip(one[name], two[name], strict=True):
            assert first == pytest.approx(second, abs=1e-4, rel=1e-4)


def by_position(rank, folder, tokens):
    """Nats of every position under context parallelism, put in order again."""
    model = initialise(Transformer(CONFIG), 0)

    def loss(network, batch):
        return LossOutput(network(batch["inputs"], documents=batch["documents"]), 1.0)

    optimizer = RMSPropMomentum(parameter_groups(model, 32), 0.01)
    devices = Devices(model, loss, optimizer, Hardware(), Parallelism(context=2))
    part = devices.share({"inputs": tokens, "documents": tokens // 40})
    with torch.no_grad():
        logits = devices.evaluate(part).loss
    torch.save(logits, folder / f"logits-{rank}.pt")


def test_every_position_sees_what_it_saw(tmp_path):
    """Context parallelism with two documents a row: logits by position are those of one process."""
    tokens = torch.arange(64).view(2, 32)
    model = initialise(Transformer(CONFIG), 0)
    with torch.no_grad():
        whole = model(tokens, documents=tokens // 40)
    processes(2, by_position, tmp_path, tokens)
    for rank in range(2):
        logits = torch.load(tmp_path / f"logits-{rank}.pt")
        torch.testing.assert_close(logits, whole[:, positions(32, 2, rank)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("parallelism", "processes_", "message"),
    [
        ({"shard": 2}, 1, r"is for 2 processes, and there is one \(torchrun starts more\)"),
        ({"shard": 3, "tensor": 2}, 4, r"is for 6 processes, and torchrun started 4: .*parallelism.shard=0"),
    ],
)
def test_processes_that_do_not_match(parallelism, processes_, message):
    with pytest.raises(ValueError, match=message):
        sizes(Parallelism(**parallelism), processes_)


def test_batches_that_context_parallelism_cannot_cut():
    class Two:
        def size(self):
            return 2

    with pytest.raises(ValueError, match=r"means over tokens.*advantages.*context: 1"):
        part_of({"inputs": torch.zeros(2, 8), "advantages": torch.zeros(2)}, Two())
    with pytest.raises(ValueError, match="sequence_length 6 is no multiple of 4"):
        part_of({"inputs": torch.zeros(2, 6)}, Two())
