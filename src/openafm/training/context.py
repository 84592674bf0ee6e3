"""Context parallelism: several processes share each sequence, and gather each layer's keys and values.

A sequence is cut into 2 n chunks; process r of n holds chunks r and 2 n - 1 - r, so that under a causal mask each has
the same work (as in the training of Llama 3, arXiv 2407.21783, section 3.3.2). Grouped queries make keys and values
small: at 32,768 tokens, 8 key heads of 128 in bfloat16, a layer's are 134 MB on each process, held while it runs.
Everything but attention works on single positions, and needs no change.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openafm.model.transformer import Mask, visible
from openafm.training.batches import Batch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BY_POSITION = {"inputs", "targets", "teacher_tokens", "documents"}
"""Tensors of a batch that can be cut along the sequence: their loss is a mean over tokens."""


def positions(length: int, count: int, number: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions `(length / count,)` of a sequence that process `number` of `count` holds."""
    chunks = torch.arange(length, device=device).chunk(2 * count)
    return torch.cat((chunks[number], chunks[2 * count - 1 - number]))


def part_of(batch: Batch, mesh: "DeviceMesh") -> Batch:
    """The batch at this process's positions. Raises ValueError where its loss is no mean over tokens."""
    count = mesh.size()
    if count == 1:
        return batch
    length = batch["inputs"].shape[1] if "inputs" in batch else 0
    if not batch.keys() <= BY_POSITION:
        raise ValueError(
            f"context parallelism is for losses that are means over tokens, and this step's batches hold "
            f"{', '.join(sorted(batch.keys() - BY_POSITION))}: set context: 1 here"
        )
    if length % (2 * count):
        raise ValueError(f"sequence_length {length} is no multiple of {2 * count}, twice parallelism.context")
    mine = positions(length, count, mesh.get_local_rank())
    return {name: tensor[:, mine].contiguous() for name, tensor in batch.items()}


class SharedSequence:
    """What the other processes of `mesh` (one dimension) hold of each sequence: `openafm.model`'s SequencePart."""

    def __init__(self, mesh: "DeviceMesh"):
        self.count, self.number, self.group = mesh.size(), mesh.get_local_rank(), mesh.get_group()

    def place(self, tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Mask]:
        """Positions of `tokens` `(B, T)` and the mask `(B, 1, T, T * count)` over the gathered keys."""
        parts = [positions(tokens.shape[1] * self.count, self.count, i, tokens.device) for i in range(self.count)]
        every = None if documents is None else self._gather(documents, 1)
        return parts[self.number], visible(parts[self.number], torch.cat(parts), documents, every)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, K, T * count, D)` of all processes, in their order."""
        return self._gather(key, 2), self._gather(value, 2)

    def _gather(self, tensor: Tensor, dim: int) -> Tensor:
        """All processes' tensors side by side; gradients go back as their sum to where each came from."""
        from torch.distributed._functional_collectives import all_gather_single, all_gather_single_autograd

        gather = all_gather_single_autograd if tensor.requires_grad else all_gather_single
        return gather(tensor.contiguous(), dim, self.group)
