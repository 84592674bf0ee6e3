import pytest
import torch
from safetensors.torch import save_file
from tests.engine.random_models import random_adapter

from openafm.adapters.lora import merge
from openafm.compression.embedding import quantize_embedding
from openafm.compression.package import write_package
from openafm.compression.palettize import palettize
from openafm.engine import Engine, Package, TorchEngine, open_package
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.generate import generate
from openafm.model.muparam import initialise
from openafm.tokenizer import load

SHAPE = ModelConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48)
PROMPTS = [[2, 5, 9], [2, 40, 41, 42, 43], [2, 7]]


@pytest.fixture(scope="module")
def model():
    return initialise(Transformer(SHAPE), 0).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def package(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "model.afm"
    projections = {n: palettize(linear.weight.numpy(), 4) for n, linear in model.linears().items()}
    state = model.state_dict()
    rest = {name: tensor.numpy() for name, tensor in state.items() if "norm" in name}
    embedding = quantize_embedding(state["model.embed_tokens.weight"].numpy())
    write_package(folder, SHAPE, projections, embedding, rest, tokenizer)
    store = Package(folder).adapters
    store.save("mail", random_adapter(model, 1, 2))
    store.save("notes", random_adapter(model, 2, 5))
    return folder


def test_a_model_folder_decodes_like_the_model(model, tokenizer, tmp_path):
    save_model(model, tmp_path, tokenizer)
    engine: Engine = TorchEngine.load(tmp_path)
    stop = {load(tokenizer).eos_id, load(tokenizer).end_of_turn_id}
    assert engine.batch(PROMPTS, max_tokens=8, seed=3) == generate(model, PROMPTS, max_tokens=8, stop_ids=stop, seed=3)
    assert engine.adapters() == []


def test_a_stream_is_the_batch_with_its_stop_token(package):
    engine = TorchEngine.load(package)
    for seed in range(6):
        alone = engine.batch(PROMPTS[:1], max_tokens=30, temperature=1.5, seed=seed)[0]
        streamed = list(engine.generate(PROMPTS[0], max_tokens=30, temperature=1.5, seed=seed))
        assert streamed == alone.tokens + ([alone.stop] if alone.finished else [])


def test_each_request_names_its_adapter(package):
    engine = TorchEngine.load(package.parent)  # a step's output holds the package
    assert engine.adapters() == ["mail", "notes"]
    plain, mail, notes = (engine.batch(PROMPTS, max_tokens=6, seed=1, adapter=a) for a in (None, "mail", "notes"))
    assert plain != mail != notes != plain
    assert engine.batch(PROMPTS, max_tokens=6, seed=1, adapter="mail") == mail
    assert engine.batch(PROMPTS, max_tokens=6, seed=1) == plain
    for name, answers in (("mail", mail), ("notes", notes)):
        merged = TorchEngine.load(package)
        merge(merged.use(name))
        merged_answers = generate(merged.model, PROMPTS, max_tokens=6, stop_ids=merged._stop, seed=1)
        assert [g.tokens for g in merged_answers] == [g.tokens for g in answers]
    with pytest.raises(ValueError, match="there are mail, notes"):
        list(engine.generate(PROMPTS[0], max_tokens=2, adapter="nobody"))


def test_the_package_stands_for_its_palettized_weights(package, model):
    opened = open_package(package)
    expected = {n: torch.from_numpy(palettize(m.weight.numpy(), 4).dequantize()) for n, m in model.linears().items()}
    reference = initialise(Transformer(SHAPE), 0).eval().requires_grad_(False)
    for name, weight in expected.items():
        reference.linears()[name].weight.copy_(weight)
    embedding = reference.model.embed_tokens.weight
    embedding.copy_(torch.from_numpy(quantize_embedding(embedding.numpy()).dequantize()))
    assert torch.equal(opened.model()(torch.tensor(PROMPTS[1:2])), reference(torch.tensor(PROMPTS[1:2])))
    assert opened.config == SHAPE


def test_what_is_no_package_is_said_to_be_none(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="give the output of the step compress"):
        open_package(tmp_path)
    (tmp_path / "header.json").write_text("[]")
    with pytest.raises(ValueError, match=r"header\.json is damaged"):
        open_package(tmp_path)
