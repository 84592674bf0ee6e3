"""Distillation in core pretraining: the teacher's likeliest token at each position, computed ahead (step
`teacher_tokens`) or on the fly.

AFM report (arXiv 2407.21075), section 3.2: targets are 0.9 of the teacher's top-1 token and 0.1 of the true one
(`openafm.training.losses.chunked_distillation`), so one token id a position is all that has to be kept: 2 bytes up to
65,536 entries. Ahead, the teacher runs once for all students and epochs and training goes at plain speed; on the fly,
nothing is written and the teacher runs beside each step (`openafm bench distillation` tells what each costs).
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.pretraining.mixture import CoreData, Data
from openafm.stage import Context, Hardware, Metrics
from openafm.training.batches import Batch, Batches, TokenBatches
from openafm.training.hardware import autocast
from openafm.training.losses import top1


@torch.inference_mode()
def cache_teacher(config: CoreData, context: Context, *, model: Path, shards: Path) -> Metrics:
    """Write `top1.bin`: the teacher's top-1 token at each position of the batches that `config` describes.

    `(steps, rows, sequence_length)`, in the dtype of the shards; `data.json` says which batches these are. Metrics
    tell how often the teacher's token is the true one.
    """
    teacher = load_model(model).to(context.hardware.device)
    batches = config.batches(shards, context.seed)
    dtype = np.dtype(json.loads((shards / "index.json").read_text())["dtype"])
    path = context.scratch / "top1.partial"
    context.scratch.mkdir(parents=True, exist_ok=True)
    per_step = batches.rows * config.sequence_length * dtype.itemsize
    done = path.stat().st_size // per_step if path.exists() else 0
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(done * per_step)
        file.seek(done * per_step)
        together = max(1, context.hardware.micro_batch_tokens // (batches.rows * config.sequence_length))
        for start in range(done, len(batches), together):
            steps = range(start, min(start + together, len(batches)))
            made = [batches[step] for step in steps]
            read = {name: torch.cat([batch[name] for batch in made]).to(context.hardware.device) for name in made[0]}
            with autocast(context.hardware):  # the precision that the teacher was trained in
                tokens = teacher_tokens_of(teacher, read["inputs"], read.get("documents"))
            file.write(tokens.cpu().numpy().astype(dtype).tobytes())
            context.report("teacher tokens", steps.stop, len(batches))
    path.rename(context.out / "top1.bin")
    (context.out / "data.json").write_text(json.dumps(config.model_dump(exclude_none=True), sort_keys=True) + "\n")
    agreement = _agreement(batches, context.out / "top1.bin", dtype)
    return {
        "tokens": len(batches) * batches.rows * config.sequence_length,
        "bytes_per_token": dtype.itemsize,
        "teacher_top1_accuracy": round(agreement, 5),
        "headline": f"the teacher's first choice is the true token at {agreement:.1%} of the positions",
    }


def open_teacher(folder: Path, student: Transformer, hardware: Hardware) -> Transformer:
    """The model in `folder`, to read on the fly. Raises ValueError where its vocabulary is not the student's."""
    teacher = load_model(folder).requires_grad_(False).to(hardware.device)
    sizes = teacher.config.vocab_size, student.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"{folder} has a vocabulary of {sizes[0]}, its student {sizes[1]}: give both one tokenizer")
    return teacher


@torch.no_grad()
def teacher_tokens_of(teacher: Transformer, inputs: Tensor, documents: Tensor | None = None) -> Tensor:
    """The teacher's likeliest next token after each of `inputs` `(batch, sequence)`."""
    return top1(teacher.hidden(inputs, documents=documents), teacher.model.embed_tokens.weight)


def _agreement(batches: TokenBatches, path: Path, dtype: np.dtype) -> float:
    shape = (len(batches), batches.rows, batches.sources[0].length)
    top1 = np.memmap(path, dtype=dtype, mode="r", shape=shape)
    hits = [float((batches[step]["targets"].numpy() == top1[step]).mean()) for step in range(len(batches))]
    return float(np.mean(hits))


class DistilBatches:
    """Token batches with the teacher's tokens beside the true ones."""

    def __init__(self, batches: TokenBatches, cache: Path, config: Data):
        kept = json.loads((cache / "data.json").read_text())
        wanted = {name: getattr(config, name) for name in CoreData.model_fields if getattr(config, name) is not None}
        if kept != wanted:
            raise ValueError(
                f"{cache / 'data.json'} is of other batches ({kept}) than this step's ({wanted}); match them"
            )
        self.batches: Batches = batches
        rows = len(batches), batches.rows, config.sequence_length
        dtype = batches.sources[0].dtype
        self.top1 = np.memmap(cache / "top1.bin", dtype=dtype, mode="r", shape=rows)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        return {**self.batches[step], "teacher_tokens": torch.from_numpy(self.top1[step].astype(np.int64))}
