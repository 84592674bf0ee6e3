"""What distillation costs: the teacher's top-1 tokens computed ahead or on the fly, against training without a teacher.

    openafm bench distillation --size 7M --seconds 60

A student of the dial's shape, a teacher with an FFN 2.9 times as wide (AFM: 23,296 of 8,064). "Ahead" has two parts:
the teacher's pass, once for all students and epochs, and training on its tokens, 2 bytes each on disk; "on the fly" has
the teacher read every batch. Figures are tokens a second; the part "teacher only" is the one-off pass.
"""

import argparse

import torch

from harness import alternate, options, show
from openafm.model import Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.pretraining.distillation import teacher_tokens_of
from openafm.stage import Hardware
from openafm.training.hardware import autocast
from openafm.training.losses import chunked_distillation, chunked_next_token
from openafm.training.optimizers import RMSPropMomentum
from training import Step, batch_of, rate, seconds, shape


def main() -> None:
    o = options(__doc__, size="7M", batch=8, length=256, seconds=60.0, threads=2, precision="bfloat16")
    torch.set_num_threads(o.threads)
    built = steps(o)
    counts = {
        name: max(1, int(o.seconds / (len(built) * o.repeats * [seconds(step) for _ in range(3)][-1])))
        for name, step in built.items()
    }
    tokens = o.batch * o.length
    figures = alternate(
        {name: lambda name=name, step=step: rate(step, counts[name], tokens) for name, step in built.items()}, o.repeats
    )
    show(
        f"distillation {o.size}", "tokens/s", figures, limit=None, as_json=o.json,
        detail={"bytes_per_token_on_disk": 2, "size": o.size, "batch": o.batch, "length": o.length},
    )  # fmt: skip


def steps(o: argparse.Namespace) -> dict[str, Step]:
    config, hardware = shape(o.size), Hardware(precision=o.precision)
    student = initialise(Transformer(config), 0).train()
    teacher = initialise(Transformer(config.model_copy(update={"d_ff": round(2.9 * config.d_ff)})), 1)
    teacher.eval().requires_grad_(False)
    optimizer = RMSPropMomentum(parameter_groups(student, 128), 0.01, 3e-4)
    batch = batch_of(config, o)
    inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def ask() -> torch.Tensor:
        with autocast(hardware):
            return teacher_tokens_of(teacher, inputs)

    kept = ask()

    def train(wanted: torch.Tensor | None) -> None:
        with autocast(hardware):
            hidden, output = student.hidden(inputs), student.model.embed_tokens.weight
            if wanted is None:
                found = chunked_next_token(hidden, output, targets, 1e-6)
            else:
                found = chunked_distillation(hidden, output, targets, wanted, 1e-6)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {
        "training on tokens ahead": lambda: train(kept),
        "no teacher": lambda: train(None),
        "teacher on the fly": lambda: train(ask()),
        "teacher only": ask,
    }


if __name__ == "__main__":
    main()
