"""A package as a Core ML program (`openafm export PACKAGE --to coreml`): tables and indices as they are.

Each projection is a `constexpr_lut_to_dense` (iOS 18: indices of 1, 2, 4 or 8 bits, a table for a group of rows), the
embedding a `constexpr_blockwise_shift_scale` of int8. The program reads a fixed number of tokens, padded at the right,
and gives the logits of each; it keeps no keys and values. Projections and attention compute in float16, norms and RoPE
in float32. It needs the extra `coreml`; coremltools runs programs on macOS only, so here the file is read back and
every constant compared.
"""

import logging
from collections.abc import Mapping
from importlib import import_module
from math import gcd
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from openafm.adapters.store import Adapter
from openafm.engine.package import EMBEDDING, Package, open_package
from openafm.engine.packed import Int8Rows, Palettized
from openafm.model import ModelConfig
from openafm.model.transformer import rope_angles
from openafm.serving.opening import latest_model
from openafm.serving.tokenizer_export import write_tokenizer

FILE = "model.mlpackage"
LENGTH = 256
"""Tokens that a program reads unless asked otherwise, or the model's most."""
Var = Any
"""A value in a MIL program."""


def export_coreml(model: Path, out: Path, adapter: str | None = None, length: int | None = None) -> str:
    """Write the package in `model` to `out`: `model.mlpackage`, the tokenizer, the adapter's inputs; a line on it.

    The program reads `length` tokens at once, LENGTH where None. With an adapter, its matrices are inputs, and
    `ADAPTER.safetensors` holds their values under the inputs' names, B times alpha / rank. Raises ValueError where
    `model` is no package.
    """
    ct = coremltools()
    package = open_package(latest_model(model))
    length = min(LENGTH, package.config.max_length) if length is None else length
    if not 1 <= length <= package.config.max_length:
        raise ValueError(f"--length {length}: the model reads 1 to {package.config.max_length} tokens")
    found = None if adapter is None else package.adapters.load(adapter)
    inputs = {} if found is None else lora_inputs(found)
    program = build(package, inputs, length)
    converted = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,  # precisions are in the program; nothing is cast behind our back
        skip_model_load=True,
    )
    converted.short_description = "Next-token logits of a language model palettized by OpenAFM"
    out.mkdir(parents=True, exist_ok=True)
    converted.save(str(out / FILE))
    write_tokenizer(package.folder, out)
    if found is not None:
        save_file(inputs, out / f"{adapter}.safetensors")
    checked = check(out / FILE, package)
    size = sum(path.stat().st_size for path in (out / FILE).rglob("*") if path.is_file()) / 1e6
    return f"{out / FILE}: {length} tokens, {size:.1f} MB, {checked} matrices read back equal, from {package.folder}"


def coremltools() -> ModuleType:
    """The library, without its warnings on what is only on macOS. Raises ValueError where it is not installed."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        return import_module("coremltools")
    except ImportError:
        raise ValueError("Core ML export needs coremltools: pip install 'openafm[coreml]'") from None


def lora_inputs(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Values of the program's LoRA inputs, float16: `LAYER_lora_a` (rank, in), `LAYER_lora_b` (out, rank) scaled."""
    scale = adapter.alpha / adapter.rank
    return {
        identifier(key): (tensor.float() * (scale if key.endswith("lora_b") else 1.0)).half().contiguous()
        for key, tensor in sorted(adapter.state.items())
    }


def identifier(name: str) -> str:
    """A tensor's name as MIL allows it."""
    return name.replace(".", "_")


def build(package: Package, lora: Mapping[str, torch.Tensor], length: int) -> Any:
    """The MIL program: `tokens` (1, length) int32 and the LoRA inputs in, `logits` (1, length, vocab) float16 out."""
    ct = coremltools()
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import Function, Program, types

    shapes: dict[str, tuple[tuple[int, ...], Any]] = {"tokens": ((1, length), types.int32)}
    shapes |= {name: (tuple(tensor.shape), types.fp16) for name, tensor in lora.items()}
    inputs = {name: mb.placeholder(shape=shape, dtype=dtype, name=name) for name, (shape, dtype) in shapes.items()}
    program = Program()
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        function.set_outputs([_Writer(mb, types, package, function.inputs).logits(length)])
    program.add_function("main", function)
    return program


class _Writer:
    """Writes the decoder's operations, named as in openafm.model.transformer; T tokens, H query and K key heads."""

    def __init__(self, mb: Any, types: Any, package: Package, inputs: Mapping[str, Var]):
        self.mb, self.types, self.package, self.inputs = mb, types, package, inputs
        self.config: ModelConfig = package.config
        self.gains = package.norms()

    def logits(self, length: int) -> Var:
        """Next-token logits (1, T, vocab) float16."""
        mb, stored = self.mb, self.package.embedding()
        scales = stored.scales[:, None]
        embedding = mb.constexpr_blockwise_shift_scale(data=stored.values, scale=scales, name=identifier(EMBEDDING))
        x = mb.gather(x=embedding, indices=self.inputs["tokens"], axis=0)
        rope = [
            table.numpy() for table in rope_angles(torch.arange(length), self.config.head_dim, self.config.rope_base)
        ]
        seen = np.tril(np.ones((1, 1, length, length), bool))
        for layer in range(self.config.n_layers):
            name = f"model.layers.{layer}"
            normed = self.norm(x, f"{name}.input_layernorm")
            x = mb.add(x=x, y=self.attention(normed, f"{name}.self_attn", rope, seen))
            normed = self.norm(x, f"{name}.post_attention_layernorm")
            x = mb.add(x=x, y=self.mlp(normed, f"{name}.mlp"))
        return mb.linear(x=self.norm(x, "model.norm"), weight=embedding, name="logits")

    def norm(self, x: Var, name: str, dtype: str = "fp16") -> Var:
        """RMSNorm over the last dimension, in float32; the result in `dtype`."""
        mb = self.mb
        x = mb.cast(x=x, dtype="fp32")
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        x = mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float32(self.config.norm_eps)))
        return mb.cast(x=mb.mul(x=x, y=self.gains[f"{name}.weight"]), dtype=dtype)

    def attention(self, x: Var, name: str, rope: list[NDArray[np.float32]], seen: NDArray[np.bool_]) -> Var:
        """Causal grouped-query attention of (1, T, d_model)."""
        mb, config = self.mb, self.config
        query = self.turned(self.heads(x, f"{name}.q_proj"), f"{name}.q_norm", rope)
        key = self.turned(self.heads(x, f"{name}.k_proj"), f"{name}.k_norm", rope)
        mixed = mb.scaled_dot_product_attention(
            query=query, key=self.shared(key), value=self.shared(self.heads(x, f"{name}.v_proj")), attn_mask=seen
        )
        length = seen.shape[-1]
        together = mb.reshape(
            x=mb.transpose(x=mixed, perm=[0, 2, 1, 3]), shape=[1, length, config.n_heads * config.head_dim]
        )
        return self.linear(together, f"{name}.o_proj")

    def heads(self, x: Var, name: str) -> Var:
        """The projection `name` of (1, T, d_model), as (1, heads, T, head_dim)."""
        apart = self.mb.reshape(x=self.linear(x, name), shape=[1, x.shape[1], -1, self.config.head_dim])
        return self.mb.transpose(x=apart, perm=[0, 2, 1, 3])

    def turned(self, x: Var, norm: str, rope: list[NDArray[np.float32]]) -> Var:
        """QK-norm where the model has it, then RoPE of (1, heads, T, head_dim), in float32; float16 again."""
        mb, half = self.mb, self.config.head_dim // 2
        x = self.norm(x, norm, "fp32") if self.config.qk_norm else mb.cast(x=x, dtype="fp32")
        first, second = mb.split(x=x, split_sizes=[half, half], axis=-1)
        across = mb.concat(values=[mb.mul(x=second, y=np.float32(-1)), first], axis=-1)
        return mb.cast(x=mb.add(x=mb.mul(x=x, y=rope[0]), y=mb.mul(x=across, y=rope[1])), dtype="fp16")

    def shared(self, x: Var) -> Var:
        """Each of K heads once for every query head that reads it: (1, K, T, D) to (1, H, T, D)."""
        config, length = self.config, x.shape[2]
        times = config.n_heads // config.n_kv_heads
        if times == 1:
            return x
        repeated = self.mb.tile(x=self.mb.expand_dims(x=x, axes=[2]), reps=[1, 1, times, 1, 1])
        return self.mb.reshape(x=repeated, shape=[1, config.n_heads, length, config.head_dim])

    def mlp(self, x: Var, name: str) -> Var:
        """SwiGLU."""
        gate = self.mb.silu(x=self.linear(x, f"{name}.gate_proj"))
        return self.linear(self.mb.mul(x=gate, y=self.linear(x, f"{name}.up_proj")), f"{name}.down_proj")

    def linear(self, x: Var, name: str) -> Var:
        """W x of a palettized W, and B A x where the adapter has this layer."""
        mb, projection = self.mb, self.package.projection(name)
        kind = self.types.nptype_from_builtin(self.types.string_to_builtin(f"uint{projection.bits}"))
        weight = mb.constexpr_lut_to_dense(
            indices=projection.indices.astype(kind), lut=tables(projection), name=identifier(name)
        )
        y = mb.linear(x=x, weight=weight)
        down, up = (self.inputs.get(identifier(f"{name}.{half}")) for half in ("lora_a", "lora_b"))
        if down is None:
            return y
        low = mb.matmul(x=x, y=down, transpose_y=True)
        return mb.add(x=y, y=mb.matmul(x=low, y=up, transpose_y=True))


def tables(projection: Palettized) -> NDArray[np.float16]:
    """Tables as the operation takes them, (groups, 1, 2**bits, 1); its groups divide the rows, so some may be split."""
    rows = len(projection.indices)
    step = projection.group if rows % projection.group == 0 else gcd(rows, projection.group)
    split = np.repeat(projection.tables, projection.group // step, axis=0)[: rows // step]
    return split[:, None, :, None]


def read(path: Path) -> Any:
    """The MIL program in a saved `.mlpackage`, constants read from its weight file."""
    ct = coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return load(spec, spec.specificationVersion, model.weights_dir)


def check(path: Path, package: Package) -> int:
    """Unpack each matrix of the saved program; how many. Raises ValueError for the first that is not the package's."""
    expected: dict[str, Palettized | Int8Rows] = {identifier(name): package.projection(name) for name in package.layers}
    expected[identifier(EMBEDDING)] = package.embedding()
    found = 0
    for op in read(path).functions["main"].operations:
        if not op.op_type.startswith("constexpr"):
            continue
        name = op.outputs[0].name
        if name not in expected or not np.array_equal(dense(op), expected[name].dequantize().astype(np.float16)):
            raise ValueError(f"{path}: {name} does not unpack to what the package holds; please report this")
        found += 1
    if found != len(expected):
        raise ValueError(f"{path} holds {found} packed matrices, the package {len(expected)}; please report this")
    return found


def dense(op: Any) -> NDArray[np.float16]:
    """What a compressed constant stands for: table[index] of its rows' table, or value times the row's scale."""
    if op.op_type == "constexpr_lut_to_dense":
        indices, luts = np.asarray(op.indices.val, np.uint8), op.lut.val[:, 0, :, 0]
        bits = luts.shape[1].bit_length() - 1
        return Palettized(indices, luts, bits, len(indices) // len(luts)).dequantize().astype(np.float16)
    values: NDArray[np.float32] = op.data.val.astype(np.float32) * op.scale.val.astype(np.float32)
    return values.astype(np.float16)
