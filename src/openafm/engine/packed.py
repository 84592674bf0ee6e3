"""Palettized weights and their packed bytes: what the compressor writes and every engine reads.

Every `group` rows of a projection share one look-up table of 2**bits values; a weight is an index into its table
(AFM, arXiv 2407.21075, section 5.1; layout in docs/format.md).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TABLE_BITS = 16  # tables are stored in float16


@dataclass(frozen=True)
class Palettized:
    """A weight matrix `(rows, columns)` as table indices."""

    indices: NDArray[np.uint8]
    """`(rows, columns)`, values below 2**bits."""
    tables: NDArray[np.float16]
    """`(groups, 2**bits)`, ascending; group g serves rows g*group to (g+1)*group - 1."""
    bits: int
    group: int

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights the tables stand for, `(rows, columns)` float32."""
        made = np.empty(self.indices.shape, np.float32)
        for number, table in enumerate(self.tables.astype(np.float32)):
            rows = slice(number * self.group, (number + 1) * self.group)
            np.take(table, self.indices[rows], out=made[rows], mode="clip")  # indices are in range; "raise" would copy
        return made

    @property
    def storage_bits(self) -> int:
        """Bits of indices and tables together, without padding."""
        return stored_bits(self.indices.shape, self.bits, self.group)


def stored_bits(shape: tuple[int, ...], bits: int, group: int) -> int:
    """Count the bits of indices and tables that a `(rows, columns)` weight takes."""
    rows, columns = shape
    return rows * columns * bits + -(-rows // group) * (TABLE_BITS << bits)


def pack(indices: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack `(rows, columns)` indices into bytes `(rows, ceil(columns * bits / 8))`, the first in the lowest bits.

    Each row starts a new byte; the spare bits at its end are zero. `bits` is 1, 2, 4 or 8.
    """
    per_byte = 8 // bits
    rows, columns = indices.shape
    padded = np.zeros((rows, -(-columns // per_byte) * per_byte), np.uint8)
    padded[:, :columns] = indices
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(rows, -1, per_byte) << shifts, axis=2)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.uint8]:
    """Return the `(rows, columns)` indices that `pack` packed."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    spread = (packed[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    return np.ascontiguousarray(spread.reshape(len(packed), -1)[:, :columns])


@dataclass(frozen=True)
class Int8Rows:
    """A matrix in int8 with one float16 scale a row: the embedding, whose rows are the output's channels."""

    values: NDArray[np.int8]
    """`(rows, columns)`, within -127 to 127."""
    scales: NDArray[np.float16]
    """`(rows,)`; a weight is value * scale."""

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights `(rows, columns)` float32."""
        return self.values.astype(np.float32) * self.scales.astype(np.float32)[:, None]
