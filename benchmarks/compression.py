"""Peers of our compression at the real size of their files: llama.cpp's quantizers and coremltools' palettizers.

    openafm bench compression --run runs/device --base import
    openafm bench compression --base offgrid --only "llama.cpp Q4_K_M,coremltools 4-bit 16 rows"

Every peer starts from the same base (a step of a run of the recipe `device`) and is judged as ours are (heldout.py):
its weights are read back from its file, dequantized and run by the same program in float32. What llama.cpp itself
makes of that file is measured on the first windows: `nats_apart_in_llama_cpp`, since it also rounds what the weights
are multiplied with. The importance matrix is the mean square of every input channel over the same training tokens that
weigh our columns; coremltools' sensitivities are squared gradients over some of them. coremltools leaves the embedding
as it is; it gets our int8 one, so that only projections differ.

Lines are appended to --results, and a peer whose line is there is not measured again; then all of the file is shown.
The grid of our own points is `openafm bench compression_grid`, in the same file.
"""

import ctypes
import io
import logging
import tempfile
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from harness import options
from heldout import CALIBRATION, Base, enter, lines, read_base, whole_size, with_int8_embedding
from openafm.compression.calibration import read_windows, readings
from openafm.engine.package import EMBEDDING
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.model.gguf import hugging_face_name, unpermute
from openafm.serving.exporting import export
from openafm.serving.gguf_export import tensor_name
from openafm.stage import Hardware

GRADIENT_WINDOWS = 16
"""Windows of them whose gradients are coremltools' sensitivities."""
CHECKED = 4
"""Windows of each domain that llama.cpp runs itself."""
LLAMA = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q3_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_M,
}
GROUPED = {"granularity": "per_grouped_channel", "group_size": 16, "channel_axis": 0}
Made = tuple[Transformer, dict[str, Any]]


def main() -> None:
    o = options(
        __doc__, run="runs/device", base="import", results="docs/results/compression.jsonl", only="", tokens=25_600
    )
    run, results = Path(o.run), Path(o.results)
    base = read_base(run, o.base, o.tokens)
    shards = run / "shards"
    with tempfile.TemporaryDirectory() as folder:
        peers = contestants(base, shards, Path(folder))
        wanted = [name.strip() for name in o.only.split(",") if name.strip()] or list(peers)
        for name in wanted:
            line = enter(results, base, name, peers[name])
            print(f"{name}: {line['megabytes']:.1f} MB, {told(line)}", flush=True)
    show(results, base.contest)


def contestants(base: Base, shards: Path, folder: Path) -> dict[str, Callable[[], Made]]:
    """Every peer's name and how it is made."""

    @cache
    def importance() -> dict[str, np.ndarray]:
        model, windows = load_model(base.folder), read_windows(shards, "train", **CALIBRATION)
        return {
            tensor_name(f"{name}.weight"): reading.gram.diagonal().numpy()
            for reading in readings(model, model, windows, Hardware())
            for name in reading.names
        }

    def llama(kind: str, weighed: bool) -> Callable[[], Made]:
        return lambda: quantized(base, kind, folder, importance() if weighed else {})

    def core(bits: int, layout: dict[str, Any], sensitive: bool = False) -> Callable[[], Made]:
        return lambda: palettized(base, bits, layout, shards if sensitive else None)

    found = {f"llama.cpp {kind}": llama(kind, False) for kind in LLAMA}
    found |= {f"llama.cpp {kind} with imatrix": llama(kind, True) for kind in LLAMA}
    return found | {
        "coremltools 4-bit 16 rows": core(4, GROUPED),
        "coremltools 4-bit tensor": core(4, {"granularity": "per_tensor"}),
        "coremltools 4-bit 16 rows sensitive": core(4, GROUPED, sensitive=True),
    }


def quantized(base: Base, kind: str, folder: Path, importance: dict[str, np.ndarray]) -> Made:
    """llama.cpp's own quantizer on our export of the base, read back from its file."""
    exact, out = folder / "exact.gguf", folder / "quantized.gguf"
    if not exact.exists():
        export(base.folder, exact, "gguf", None, "f32")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = LLAMA[kind], torch.get_num_threads()
    arrays = {name: np.ascontiguousarray(mean, np.float32) for name, mean in importance.items()}
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()  # a nameless one ends it
    for entry, (name, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if arrays:
        parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    if llama_cpp.llama_model_quantize(bytes(exact), bytes(out), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp could not quantize {exact} to {kind}")
    model, sizes = read_gguf(base, out)
    return model, sizes | {"nats_apart_in_llama_cpp": nats_apart(model, out, base)}


def read_gguf(base: Base, path: Path) -> Made:
    """The file's weights in our model, and its bits: of projections, and of everything in the file."""
    reader = gguf.GGUFReader(str(path))
    model = load_model(base.folder)
    heads = {"attn_q": model.config.n_heads, "attn_k": model.config.n_kv_heads}
    state, types = {}, {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")[-2]
        name = hugging_face_name(tensor.name)
        state[name] = torch.from_numpy(unpermute(values, heads[part]) if part in heads else values)
        types[name] = (tensor.tensor_type.name, int(tensor.n_bytes), int(tensor.n_elements))
    model.load_state_dict(state)
    projections = [types[f"{name}.weight"] for name in model.linears()]
    stored = sum(size for _, size, _ in types.values())
    return model, {
        "projection_bits_per_weight": round(8 * sum(p[1] for p in projections) / sum(p[2] for p in projections), 4),
        "package_bits_per_weight": round(8 * stored / model.config.parameters, 4),
        "megabytes": round(stored / 1e6, 4),
        "file_megabytes": round(path.stat().st_size / 1e6, 4),  # with its tokenizer
        "types": {kind: sum(p[0] == kind for p in projections) for kind in sorted({p[0] for p in projections})},
        "embedding": types[f"{EMBEDDING}.weight"][0],
    }


def nats_apart(model: Transformer, path: Path, base: Base) -> float:
    """How much higher the loss is that llama.cpp computes with the same file, over the first windows."""
    ours, theirs = [], []
    for windows in base.windows.values():
        for rows in windows.tokens[:CHECKED]:
            with torch.no_grad():
                ours.append(float(F.cross_entropy(model(rows[None, :-1])[0], rows[1:])))
            context = {"n_ctx": len(rows), "logits_all": True, "verbose": False, "type_k": 0, "type_v": 0}
            with closing(llama_cpp.Llama(str(path), n_threads=torch.get_num_threads(), **context)) as llama:
                llama.eval(rows[:-1].tolist())
                logits = torch.from_numpy(np.array(llama.scores[: len(rows) - 1]))
            theirs.append(float(F.cross_entropy(logits, rows[1:])))
    return round(float(np.mean(theirs) - np.mean(ours)), 5)


def palettized(base: Base, bits: int, layout: dict[str, Any], sensitive: Path | None) -> Made:
    """coremltools' palettizer on every projection, with sensitivities from the training text in `sensitive`."""
    from coremltools.optimize.torch import palettization as ct

    logging.disable(logging.INFO)
    model = load_model(base.folder)
    before = {name: linear.weight.detach().clone() for name, linear in model.linears().items()}
    settings: dict[str, Any] = {"module_type_configs": {"Linear": {"n_bits": bits, **layout}}}
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        if sensitive is None:
            config = ct.PostTrainingPalettizerConfig.from_dict(settings)
            made = ct.PostTrainingPalettizer(model, config).compress(num_kmeans_workers=1, inplace=True)
        else:
            windows = read_windows(sensitive, "train", CALIBRATION["length"], CALIBRATION["tokens"]).tokens
            config = ct.SKMPalettizerConfig.from_dict({**settings, "calibration_nsamples": GRADIENT_WINDOWS})
            made = ct.SKMPalettizer(model, config).compress(list(windows[:, None]), next_token_loss, inplace=True)
    weights = {name: made.get_submodule(name).weight.detach().float() for name in before}
    return restored(base, weights, bits, layout)


def next_token_loss(model: Transformer, rows: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(rows[:, :-1]).transpose(1, 2), rows[:, 1:])


def restored(base: Base, weights: dict[str, torch.Tensor], bits: int, layout: dict[str, Any]) -> Made:
    """A plain model with the palettized weights and the int8 embedding; bits are those of Core ML, float16 tables."""
    model, stored = with_int8_embedding(load_model(base.folder).requires_grad_(False)), 0
    for name, linear in model.linears().items():
        group = layout.get("group_size", linear.out_features)
        for rows in weights[name].split(group):
            if len(rows.unique()) > 2**bits:
                raise RuntimeError(f"{name}: {len(rows.unique())} values where a table has {2**bits}")
        linear.weight.copy_(weights[name])
        stored += linear.weight.numel() * bits + -(-linear.out_features // group) * 2**bits * 16
    return model, whole_size(model, stored)


def told(line: dict[str, Any]) -> str:
    """Loss over the base in both domains."""
    return ", ".join(f"{name} {found['loss_over_base']:+.4f}" for name, found in line["domains"].items())


def show(results: Path, contest: str) -> None:
    """Everything in the file that was measured on the same windows, by size."""
    found = sorted((line for line in lines(results) if line["contest"] == contest), key=lambda line: line["megabytes"])
    table = Table(title="loss over the base in nats a token, with 95% intervals over windows")
    for column in ("", "bits, projections", "bits, all", "MB"):
        table.add_column(column, justify="right" if column else "left")
    for domain in found[0]["domains"]:
        table.add_column(f"{domain}: perplexity", justify="right")
        table.add_column("over the base", justify="right")
        table.add_column("KL", justify="right")
    for line in found:
        cells = [f"{line['projection_bits_per_weight']:.2f}", f"{line['package_bits_per_weight']:.2f}"]
        cells.append(f"{line['megabytes']:.1f}")
        for figures in line["domains"].values():
            half = (figures["loss_over_base_interval"][1] - figures["loss_over_base_interval"][0]) / 2
            cells += [f"{figures['perplexity']:.2f}", f"{figures['loss_over_base']:.4f} ±{half:.4f}"]
            cells.append(f"{figures['kl']:.4f}")
        table.add_row(line["name"], *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
