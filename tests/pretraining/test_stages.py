import json

import pytest
import torch

from openafm.model.checkpoint import load_model
from openafm.model.config import load_config
from openafm.pretraining.distillation import cache_teacher
from openafm.pretraining.mixture import Data
from openafm.pretraining.stages import PretrainConfig, Shape, pretrain
from openafm.stage import Context

DATA = {"mixture": {"web": 1.0, "code": 1.0}, "batch_tokens": 64, "tokens": 3200, "sequence_length": 16}
SHAPE = Shape(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, rope_base=500.0)


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    """The stage asks a tokenizer for its vocabulary only."""

    class Vocabulary:
        vocab_size = 64

    monkeypatch.setattr("openafm.pretraining.stages.load_tokenizer", lambda folder: Vocabulary())
    return tmp_path


def context(tmp_path, name: str) -> Context:
    (tmp_path / name).mkdir()
    return Context(tmp_path / name, tmp_path / f"{name}.scratch", seed=2)


def test_core_distil_continued_long(tokenizer, token_shards, tmp_path):
    core = PretrainConfig(shape=SHAPE, base_width=16, **DATA)
    metrics = pretrain(core, context(tmp_path, "core"), shards=token_shards, tokenizer=tokenizer)
    assert metrics["final_cross_entropy"] < 3.0
    data = Data(**DATA)
    cached = cache_teacher(data, context(tmp_path, "cache"), model=tmp_path / "core", shards=token_shards)
    assert cached["teacher_top1_accuracy"] > 0.3
    inputs = {"shards": token_shards, "tokenizer": tokenizer}
    pretrain(core, context(tmp_path, "distil"), teacher_tokens=tmp_path / "cache", **inputs)
    curve = [json.loads(line) for line in (tmp_path / "distil/metrics.jsonl").read_text().splitlines()]
    assert "teacher_cross_entropy" in curve[-1]
    longer = PretrainConfig(lr=3e-4, base_width=16, lengthen=True, **{**DATA, "sequence_length": 64, "tokens": 640})
    pretrain(longer, context(tmp_path, "long"), model=tmp_path / "distil", **inputs)
    config = load_config(tmp_path / "long")
    assert config.max_length == 64 and config.rope_base > 500


def test_teacher_tokens_are_the_argmax(tokenizer, token_shards, tmp_path, tiny_model):
    from openafm.model.checkpoint import save_model
    from openafm.pretraining.distillation import DistilBatches

    save_model(tiny_model, tmp_path / "teacher")
    data = Data(**DATA)
    cache_teacher(data, context(tmp_path, "cache"), model=tmp_path / "teacher", shards=token_shards)
    batches = DistilBatches(data.batches(token_shards, 2), tmp_path / "cache", data)
    batch = batches[7]
    assert torch.equal(batch["teacher_tokens"], load_model(tmp_path / "teacher")(batch["inputs"]).argmax(-1))
    with pytest.raises(ValueError, match="other batches"):
        DistilBatches(data.batches(token_shards, 2), tmp_path / "cache", Data(**{**DATA, "tokens": 640}))


def test_training_that_breaks_off_is_an_error_or_where_allowed_a_result(tokenizer, token_shards, tmp_path):
    wild = {"shape": SHAPE.model_copy(update={"qk_norm": False}), "base_width": 16, "lr": 1e6, **DATA}
    inputs = {"shards": token_shards, "tokenizer": tokenizer}
    with pytest.raises(ValueError, match="in a row were skipped"):
        pretrain(PretrainConfig(**wild), context(tmp_path, "error"), **inputs)
    metrics = pretrain(PretrainConfig(may_diverge=True, **wild), context(tmp_path, "kept"), **inputs)
    assert metrics["diverged"] and load_config(tmp_path / "kept").qk_norm is False
    tame = PretrainConfig(may_diverge=True, **{**wild, "lr": 0.01})
    assert pretrain(tame, context(tmp_path, "tame"), **inputs)["diverged"] is False


def test_shape_or_model(tokenizer, token_shards, tmp_path):
    with pytest.raises(ValueError, match="either"):
        pretrain(PretrainConfig(**DATA), context(tmp_path, "none"), shards=token_shards, tokenizer=tokenizer)


def test_on_the_fly_is_as_ahead(tokenizer, token_shards, tmp_path):
    """The same curve whether the teacher's tokens lie on disk or its model reads each batch; nothing else differs."""
    inputs = {"shards": token_shards, "tokenizer": tokenizer}
    config = PretrainConfig(shape=SHAPE, base_width=16, **{**DATA, "tokens": 640})
    pretrain(config, context(tmp_path, "teacher"), **inputs)
    kept = cache_teacher(
        Data(**{**DATA, "tokens": 640}), context(tmp_path, "cache"), model=tmp_path / "teacher", shards=token_shards
    )
    assert kept["bytes_per_token"] == 2 and (tmp_path / "cache/top1.bin").stat().st_size == 2 * 640
    pretrain(config, context(tmp_path, "ahead"), teacher_tokens=tmp_path / "cache", **inputs)
    pretrain(config, context(tmp_path, "fly"), teacher=tmp_path / "teacher", **inputs)
    ahead, fly = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("ahead", "fly"))
    assert ahead == fly and "teacher_cross_entropy" in fly
    with pytest.raises(ValueError, match="not from both"):
        pretrain(
            config, context(tmp_path, "both"), teacher_tokens=tmp_path / "cache", teacher=tmp_path / "teacher", **inputs
        )


def test_a_teacher_of_another_vocabulary_is_refused(tokenizer, token_shards, tmp_path, tiny_config):
    from openafm.model import Transformer
    from openafm.model.checkpoint import save_model

    save_model(Transformer(tiny_config.model_copy(update={"vocab_size": 65})), tmp_path / "teacher")
    with pytest.raises(ValueError, match="vocabulary of 65, its student 64"):
        pretrain(
            PretrainConfig(shape=SHAPE, **DATA), context(tmp_path, "out"),
            shards=token_shards, tokenizer=tokenizer, teacher=tmp_path / "teacher",
        )  # fmt: skip


def test_the_baseline_optimizer(tokenizer, token_shards, tmp_path):
    config = PretrainConfig(shape=SHAPE, base_width=16, optimizer="adamw", weight_decay=1e-4, floor=0.01, **DATA)
    metrics = pretrain(config, context(tmp_path, "adamw"), shards=token_shards, tokenizer=tokenizer)
    assert metrics["final_cross_entropy"] < 3.0
    other = config.model_copy(update={"optimizer": "rmsprop"})
    assert pretrain(other, context(tmp_path, "rmsprop"), shards=token_shards, tokenizer=tokenizer) != metrics


def test_tokens_of_another_vocabulary_are_named(tokenizer, token_shards, tmp_path):
    index = json.loads((token_shards / "index.json").read_text())
    (token_shards / "index.json").write_text(json.dumps(index | {"vocab_size": 320}))
    with pytest.raises(ValueError, match=r"index\.json: tokens of a vocabulary of 320, and the model knows 64"):
        pretrain(
            PretrainConfig(shape=SHAPE, base_width=16, **DATA),
            context(tmp_path, "core"), shards=token_shards, tokenizer=tokenizer,
        )  # fmt: skip
