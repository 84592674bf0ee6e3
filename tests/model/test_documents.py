"""Attention within documents, recomputation, and who sees whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise
from openafm.model.transformer import _added, attend, block_mask, visible
from openafm.training.batches import ExampleBatches
from openafm.training.context import positions


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_packed_row_is_its_documents_alone(lengths):
    config = ModelConfig(
        vocab_size=64, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, rope_base=500.0
    )
    model = initialise(Transformer(config), 0).eval()
    parts = [torch.randint(64, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    documents = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(lengths)).unsqueeze(0)
    with torch.no_grad():
        packed = model(torch.cat(parts).unsqueeze(0), documents=documents)[0]
        alone = torch.cat([model(part.unsqueeze(0))[0] for part in parts])
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


def test_one_document_is_no_mask(tiny_model):
    tokens = torch.arange(12).view(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(
            tiny_model(tokens, documents=torch.zeros_like(tokens)), tiny_model(tokens), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_block_mask_of_a_gpu_is_the_tensor_of_a_cpu(count):
    """Both kinds of mask give one attention, also where queries are one process's part of the sequence."""
    torch.manual_seed(0)
    mine, keys = positions(32, count, count - 1), torch.randperm(32)
    documents = torch.arange(32).div(10, rounding_mode="floor").expand(2, 32)
    query = torch.randn(2, 4, len(mine), 8)
    key, value = torch.randn(2, 2, 2, 32, 8)
    tensor = visible(mine, keys, documents[:, mine], documents[:, keys])
    block = block_mask(mine, keys, documents[:, mine], documents[:, keys])
    flex = flex_attention(query, key, value, block_mask=block, enable_gqa=True)
    torch.testing.assert_close(attend(query, key, value, tensor), flex, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [24, 600])
def test_the_mask_that_is_added_gives_the_bits_of_the_bool_one(length, precision):
    """SDPA makes it of the bool one in each layer."""
    documents = torch.arange(length).div(10, rounding_mode="floor").expand(2, length)
    seen = visible(torch.arange(length), torch.arange(length), documents, documents)
    query, upstream = torch.randn(2, 2, 4, length, 8, dtype=precision)
    key, value = torch.randn(2, 2, 2, length, 8, dtype=precision)
    results = []
    for mask in (seen, _added(seen, query)):
        parts = [part.clone().requires_grad_() for part in (query, key, value)]
        mixed = attend(*parts, mask)
        mixed.backward(upstream)
        results.append([mixed, *(part.grad for part in parts)])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_recomputed_gradients_are_bit_identical(tiny_config):
    """Dropout included: its draws are repeated."""
    gradients = []
    for recompute in (False, True):
        model = initialise(Transformer(tiny_config, dropout=0.2), 0).train()
        model.recompute = recompute
        torch.manual_seed(1)
        model(torch.arange(16).view(2, 8)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_packed_examples_are_numbered_where_they_are_separate():
    examples = [([1, 2, 3], [4, 5]), ([6], [7, 8]), ([9, 10], [11])]
    options = {"sequence_length": 11, "batch_tokens": 11, "tokens": 22, "seed": 0, "pad_id": 0}
    plain, separate = ExampleBatches(examples, **options), ExampleBatches(examples, **options, separate=True)
    batch = separate[0]
    assert "documents" not in plain[0] and torch.equal(batch["inputs"], plain[0]["inputs"])
    sizes = [sum(map(len, examples[number])) for number in separate.packed[0]]
    wanted = [number for number, size in enumerate([*sizes, 12]) for _ in range(size)][:11]
    assert batch["documents"].tolist() == [wanted]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_a_sequence_are_all_of_it_with_equal_work(count):
    parts = [positions(32, count, number) for number in range(count)]
    assert sorted(torch.cat(parts).tolist()) == list(range(32))
    assert len({int(part.sum()) for part in parts}) == 1  # a query at p sees p + 1 keys
