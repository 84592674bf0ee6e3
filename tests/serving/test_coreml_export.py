"""Core ML programs as saved: read back by coremltools and computed by torch, one operation of MIL after the other.

coremltools runs programs on macOS only, so Core ML itself is not in this proof.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from openafm.adapters.lora import load_adapter
from openafm.engine import Package
from openafm.engine.packed import Palettized
from openafm.model.checkpoint import load_model
from openafm.serving.coreml_export import check, dense, read, tables
from openafm.serving.exporting import export

pytest.importorskip("coremltools", reason="the extra coreml is not installed")


def exact(value):
    """Numbers in float64, whatever they are stored in."""
    tensor = torch.as_tensor(np.asarray(value))
    return tensor.double() if tensor.is_floating_point() else tensor


def attention(v):
    mask = v("attn_mask")
    return F.scaled_dot_product_attention(v("query"), v("key"), v("value"), mask)


OPERATIONS = {
    "mul": lambda v: v("x") * v("y"),
    "add": lambda v: v("x") + v("y"),
    "cast": lambda v: v("x") if v("x").is_floating_point() else v("x").long(),
    "matmul": lambda v: (v("x").mT if v("transpose_x") else v("x")) @ (v("y").mT if v("transpose_y") else v("y")),
    "linear": lambda v: F.linear(v("x"), v("weight"), v("bias")),
    "reshape": lambda v: v("x").reshape(*v("shape").tolist()),
    "transpose": lambda v: v("x").permute(*v("perm").tolist()),
    "reduce_mean": lambda v: v("x").mean(v("axes").tolist(), keepdim=bool(v("keep_dims"))),
    "rsqrt": lambda v: (v("x") + v("epsilon")).rsqrt(),
    "split": lambda v: v("x").split(v("split_sizes").tolist(), int(v("axis"))),
    "concat": lambda v: torch.cat(v("values"), int(v("axis"))),
    "expand_dims": lambda v: v("x").unsqueeze(int(v("axes")[0])),
    "tile": lambda v: v("x").repeat(*v("reps").tolist()),
    "scaled_dot_product_attention": attention,
    "silu": lambda v: F.silu(v("x")),
    "greater_equal": lambda v: v("x") >= v("y"),
    "select": lambda v: torch.where(v("cond"), v("a"), v("b")),
    "gather": lambda v: v("x")[v("indices").long()],
}


def compute(program, inputs, rounded=False):
    """The output of MIL's function `main`, every operation in float64; `rounded` to the type it declares."""
    main = program.functions["main"]
    values = {name: exact(inputs[name]) for name in main.inputs}

    def value(op):
        def find(key):
            given = op.inputs.get(key)
            if given is None:
                return None
            if isinstance(given, (list, tuple)):
                return [values[var.name] if var.name in values else exact(var.val) for var in given]
            return values[given.name] if given.name in values else exact(given.val)

        return find

    for op in main.operations:
        if op.op_type == "const":
            continue
        found = exact(dense(op)) if op.op_type.startswith("constexpr") else OPERATIONS[op.op_type](value(op))
        for output, tensor in zip(op.outputs, found if isinstance(found, tuple) else (found,), strict=True):
            assert tuple(output.shape) == tuple(tensor.shape), op.name
            values[output.name] = tensor
            if rounded and tensor.is_floating_point():
                bits = output.dtype.get_bitwidth()
                values[output.name] = tensor.to({16: torch.float16, 32: torch.float32}[bits]).double()
    return values[main.outputs[0].name]


@pytest.mark.parametrize("adapter", [None, "summary"])
def test_the_saved_program_computes_the_packages_logits(run, tmp_path, adapter):
    line = export(run / "recovery", tmp_path / "out", "coreml", adapter=adapter, length=24)
    assert "8 matrices read back equal" in line
    package = Package(run / "recovery" / "model.afm")
    model = package.model()
    embedding = model.model.embed_tokens.weight
    embedding.data = embedding.half().float()  # int8 times scale, as Core ML holds it
    inputs = {"tokens": torch.randint(0, 300, (1, 24), generator=torch.Generator().manual_seed(0))}
    bare = model.double()(inputs["tokens"])
    expected = bare
    if adapter is not None:
        inputs |= load_file(tmp_path / "out" / f"{adapter}.safetensors")
        found = package.adapters.load(adapter)
        load_adapter(model, found.state, found.alpha)
        expected = model(inputs["tokens"])
        assert (expected - bare).abs().max() > 0.1
    computed = compute(read(tmp_path / "out" / "model.mlpackage"), inputs)
    torch.testing.assert_close(computed, expected.detach(), atol=1e-4, rtol=1e-4)
    rounded = compute(read(tmp_path / "out" / "model.mlpackage"), inputs, rounded=True)
    assert 0 < (rounded - expected).abs().mean() < 0.01 * expected.std()  # float16 as on the device


def test_the_program_holds_indices_and_tables_as_they_are(run, tmp_path):
    export(run / "recovery", tmp_path, "coreml", length=8)
    package = Package(run / "recovery" / "model.afm")
    operations = read(tmp_path / "model.mlpackage").functions["main"].operations
    packed = {op.outputs[0].name: op for op in operations if op.op_type == "constexpr_lut_to_dense"}
    for name, layer in package.layers.items():
        op, stored = packed[name.replace(".", "_")], package.projection(name)
        np.testing.assert_array_equal(op.indices.val, stored.indices)
        np.testing.assert_array_equal(op.lut.val[:, 0, :, 0], stored.tables)
        assert op.indices.dtype.get_bitwidth() == layer.bits
    assert {file.suffix for file in tmp_path.iterdir()} <= {".mlpackage", ".json", ".model"}


def test_groups_that_do_not_divide_the_rows_are_split():
    rng = np.random.default_rng(0)
    stored = Palettized(
        rng.integers(0, 4, (24, 5)).astype(np.uint8), rng.normal(size=(2, 4)).astype(np.float16), bits=2, group=16
    )
    luts = tables(stored)
    op = SimpleNamespace(
        op_type="constexpr_lut_to_dense", indices=SimpleNamespace(val=stored.indices), lut=SimpleNamespace(val=luts)
    )
    assert luts.shape == (3, 1, 4, 1)
    np.testing.assert_array_equal(dense(op), stored.dequantize().astype(np.float16))


def test_a_changed_constant_is_found(run, tmp_path):
    export(run / "recovery", tmp_path, "coreml", length=8)
    path = next((tmp_path / "model.mlpackage").rglob("weight.bin"))
    data = bytearray(path.read_bytes())
    package = Package(run / "recovery" / "model.afm")
    at = data.find(package.embedding().values.tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="does not unpack"):
        check(tmp_path / "model.mlpackage", package)


def test_what_cannot_be_is_said(run, tmp_path):
    assert load_model(run / "teacher")
    for model, options, message in (
        ("teacher", {}, "holds no package"),
        ("recovery", {"length": 0}, "--length 0: the model reads 1 to"),
        ("recovery", {"kind": "f16"}, "leave --type out"),
        ("recovery", {"adapter": "none"}, "no adapter 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            export(run / model, tmp_path / "x", "coreml", **options)
    with pytest.raises(ValueError, match="leave --length out"):
        export(run / "recovery", tmp_path / "x", "hf", length=8)
    assert not (tmp_path / "x").exists()
