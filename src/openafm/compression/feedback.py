"""Error feedback: a projection's columns are palettized one after another, and those still to come make up for each.

Used by the steps `compress`, `recovery` and `qat`. GPTQ (Frantar et al., arXiv 2210.17323, section 3) with look-up
tables for its grid: what counts is the output's error, tr((W - Q) G (W - Q)^T) with G the Gram matrix of the inputs, so
a column's error can be cancelled by others whose inputs go with its own. At 2 bits the tables are then fitted to the
indices that were found, and the indices found again. Before, the weight moves to where it makes up for the layers
before it (`corrected`). Tables hold multiples of one scale in int8 (`on_byte_grid`), as engines compute with them: what
that rounding costs is made up for here, too.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from openafm.compression.calibration import Reading
from openafm.compression.palettize import palettize
from openafm.engine.packed import Palettized

DAMPING = 0.01  # of the mean diagonal, added to it: GPTQ's own
BLOCK = 128  # columns whose errors reach the rest of the matrix together
CORRECTION = 0.1  # the same, where errors of earlier layers are made up for: noise in them must not be learned
REFITS = {1: 2, 2: 2}  # by bits; at 4 bits a refit wins less than 1% of the error, and costs more than all the rest
CODES = range(127, 63, -1)  # of a table's largest value in int8; `best_scale` of native/weights.cpp tries the same
ONE_HOT = 1 << 25  # numbers held at once while tables are fitted


@dataclass(frozen=True)
class Elimination:
    """The order in which columns are palettized, loudest input first, and what each error asks of the later ones."""

    gram: Tensor
    """G `(columns, columns)`, float32."""
    order: Tensor
    """`(columns,)`."""
    factor: Tensor
    """`(columns, columns)`, upper: the Cholesky factor of the inverse of G in that order."""

    @property
    def importance(self) -> Tensor:
        """What a squared error in each column costs once the later ones have made up for it, `(columns,)`."""
        weights = torch.empty(len(self.order))
        weights[self.order] = self.factor.diagonal() ** -2
        return weights


def damped(gram: Tensor, share: float = DAMPING) -> Tensor:
    """Return the Gram matrix with a little of its mean diagonal added, in float64: inputs may be silent, or depend."""
    diagonal = gram.diagonal().double()
    return gram.double() + torch.diag(torch.full_like(diagonal, share * float(diagonal.mean()) + 1e-30))


def eliminate(gram: Tensor) -> Elimination:
    """Prepare the feedback for projections whose inputs have the Gram matrix `gram` `(columns, columns)`."""
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)[order][:, order]))
    return Elimination(gram.float(), order, torch.linalg.cholesky(inverse, upper=True).float())


def corrected(weight: Tensor, reading: Reading) -> Tensor:
    """Return the weight whose outputs on the inputs that are there come closest to the base's on its own.

    With the names of `Reading` it minimises E|d + W x - W' x^|^2, ridge-regularised towards W: W' = W + (W E[(x - x^)
    x^T] + E[d x^T]) (G + lambda I)^-1. So a projection also makes up for what those before it lost.
    """
    pull = weight.double() @ reading.change.double()
    if reading.lack is not None:
        pull = pull + reading.lack.double()
    if not pull.any():  # the first block's inputs are the base's
        return weight
    moved: Tensor = torch.linalg.solve(damped(reading.gram, CORRECTION), pull.T)
    return weight + moved.T.float()


@torch.no_grad()
def palettize_with_feedback(weight: Tensor, elimination: Elimination, bits: int, group: int = 16) -> Palettized:
    """Return `weight` `(rows, columns)` with one table of 2**bits values for every `group` rows.

    `elimination` is that of the projection's inputs, which others may share. The result's error is never above that of
    `palettize` with the same tables' budget, each column weighted by its input's second moment. All on the byte grid.
    """
    weight, gram = weight.float(), elimination.gram

    def measured(made: Palettized) -> tuple[float, Palettized]:
        """The error of the outputs over their mean square, beside the weights it is that of."""
        return output_error(weight, made, gram), made

    tried = [measured(on_byte_grid(palettize(weight.numpy(), bits, group, gram.diagonal().numpy())))]
    start = on_byte_grid(palettize(weight.numpy(), bits, group, elimination.importance.numpy()))
    for refits_left in reversed(range(1 + REFITS.get(bits, 0))):
        indices, _ = feed_back(weight, elimination, torch.from_numpy(start.tables).float(), group)
        made = Palettized(indices.numpy().astype(np.uint8), start.tables, bits, group)
        tried.append(measured(made))
        if refits_left:
            start = on_byte_grid(replace(made, tables=fit_tables(weight, gram, indices, bits, group).half().numpy()))
    return min(tried, key=lambda pair: pair[0])[1]


def on_byte_grid(made: Palettized) -> Palettized:
    """Return it with each table at its `byte_multiples`; a value that is one to float16's precision stays."""
    tables = torch.from_numpy(made.tables).double()
    uses = torch.zeros_like(tables)
    for number in range(len(tables)):
        rows = made.indices[number * made.group : (number + 1) * made.group]
        uses[number] = torch.from_numpy(np.bincount(rows.ravel(), minlength=tables.shape[1]))
    chosen = byte_multiples(tables, uses)
    there = (chosen - tables).abs() <= tables.abs() * torch.finfo(torch.half).eps
    return replace(made, tables=torch.where(there, tables, chosen).half().numpy())


def byte_multiples(tables: Tensor, uses: Tensor) -> Tensor:
    """The multiples of one scale a table, -127 to 127, of least squared error; the largest value is one itself.

    `tables` `(groups, entries)` of double and `uses`, how often each value is used, which is how often it counts.
    """
    scales = tables.abs().amax(1, keepdim=True) / torch.tensor(CODES, dtype=torch.double)  # (groups, codes)
    near = scales[:, :, None] * (tables[:, None] / scales[:, :, None].clamp_min(1e-30)).round()
    best = ((near - tables[:, None]).square() * uses[:, None]).sum(2).argmin(1)
    return near[torch.arange(len(tables)), best]


def output_error(weight: Tensor, made: Palettized, gram: Tensor) -> float:
    """Return the mean squared error of the outputs over their mean square: 0 is perfect, 1 is silence."""
    lost = weight - torch.from_numpy(made.dequantize())
    return float(((lost @ gram) * lost).sum() / ((weight @ gram) * weight).sum().clamp_min(1e-30))


def feed_back(weight: Tensor, elimination: Elimination, tables: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return the indices `(rows, columns)` into ascending `tables` `(groups, k)`, and the values that were rounded."""
    order, factor = elimination.order, elimination.factor
    left, indices, values = weight[:, order], torch.empty(weight.shape, dtype=torch.long), torch.empty_like(weight)
    tables = tables.repeat_interleave(group, 0)[: len(weight)]
    middles = ((tables[:, 1:] + tables[:, :-1]) / 2).contiguous()
    for first in range(0, weight.shape[1], BLOCK):
        last = min(first + BLOCK, weight.shape[1])
        block, errors = left[:, first:last].T.contiguous(), torch.empty(last - first, len(weight))
        for i in range(last - first):
            index = (block[i, :, None] > middles).sum(1)
            row = factor[first + i, first:last]
            errors[i] = (block[i] - tables.gather(1, index[:, None])[:, 0]) / row[i]
            block[i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
            indices[:, order[first + i]], values[:, order[first + i]] = index, block[i]
        left[:, last:] -= errors.T @ factor[first:last, last:]
    return indices, values


def fit_tables(weight: Tensor, gram: Tensor, indices: Tensor, bits: int, group: int) -> Tensor:
    """Return the ascending tables `(groups, 2**bits)`, in float16's values, of least output error for these indices.

    The error of group g is a quadratic form in its table t: t^T M t - 2 b^T t with M the sum of A^T G A and b of
    A^T G w over its rows w, A the one-hot indices `(columns, k)` of a row. Values that no weight uses go to the group's
    best constant.
    """
    k, (rows, columns) = 2**bits, weight.shape
    groups = -(-rows // group)
    matrix, right = torch.zeros(groups, k, k, dtype=torch.double), torch.zeros(groups, k, dtype=torch.double)
    pulled = weight @ gram
    step = max(1, ONE_HOT // (columns * k))
    for first in range(0, rows, step):
        of = torch.arange(first, min(first + step, rows)) // group
        hot = torch.nn.functional.one_hot(indices[first : first + step], k).float()  # (rows, columns, k)
        met = torch.einsum("cd,rdk->rck", gram, hot)
        matrix.index_add_(0, of, torch.einsum("rck,rcl->rkl", hot, met).double())
        right.index_add_(0, of, torch.einsum("rck,rc->rk", hot, pulled[first : first + step]).double())
    middle = (right.sum(1) / matrix.sum((1, 2)).clamp_min(1e-30))[:, None]
    slight = 1e-6 * matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None] + 1e-30
    tables: Tensor = torch.linalg.solve(matrix + torch.diag_embed(slight.expand(-1, k)), right + slight * middle)
    return tables.half().float().sort(1).values.contiguous()
