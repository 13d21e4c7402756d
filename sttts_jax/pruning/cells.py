"""Cells: a grid of patches seen as windows, in window-major order.

Tokens travel as [..., C, W, D] from the patch embedding on: the W patches of a cell lie side by side, so dropping a
cell is dropping one row and pooling a cell is a reduction over one axis. A grid that the cell does not divide is padded
with empty slots, floor(pad / 2) before and the rest after.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class CellGrid:
    """Patches of a frame `grid` = (rows, columns), pooled by windows of `cell` = (rows, columns) patches."""

    grid: tuple[int, int] = (27, 27)
    cell: tuple[int, int] = (3, 3)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return -(-self.grid[0] // self.cell[0]), -(-self.grid[1] // self.cell[1])

    @property
    def cells(self) -> int:
        """C."""
        return self.shape[0] * self.shape[1]

    @property
    def window(self) -> int:
        """W."""
        return self.cell[0] * self.cell[1]

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @functools.cached_property
    def slots(self) -> np.ndarray:
        """int32 [C, W]: the patch in each slot, row-major inside the cell and over the cells; -1 is an empty slot.

        A 4 x 4 grid with 3 x 3 cells is padded by one row and column before and one after, so cell 0 holds patches
        [-1 -1 -1; -1 0 1; -1 4 5].
        """
        (h, w), (a, b), (rows, cols) = self.grid, self.cell, self.shape
        padded = np.full((rows * a, cols * b), -1, np.int32)
        top, left = (rows * a - h) // 2, (cols * b - w) // 2
        padded[top : top + h, left : left + w] = np.arange(h * w, dtype=np.int32).reshape(h, w)
        return padded.reshape(rows, a, cols, b).transpose(0, 2, 1, 3).reshape(self.cells, self.window)

    @property
    def filled(self) -> np.ndarray | None:
        """bool [C, W] where a slot holds a patch, or None when all do."""
        return None if self.patches == self.cells * self.window else self.slots >= 0

    def to_cells(self, x: jax.Array) -> jax.Array:
        """[..., N, D] row-major patches -> [..., C, W, D]; empty slots are zero. Raises ValueError for another N."""
        lead, (patches, width) = x.shape[:-2], x.shape[-2:]
        if patches != self.patches:
            raise ValueError(f"a grid of {self.grid} has {self.patches} patches, but x {x.shape} holds {patches}")
        if self.filled is not None:
            slots = jnp.asarray(self._slots_or_n)  # [C, W], N where empty
            return jnp.take(x, slots, axis=-2, mode="fill", fill_value=0)
        (rows, cols), (a, b) = self.shape, self.cell
        windows = jnp.moveaxis(x.reshape(*lead, rows, a, cols, b, width), -4, -3)  # [..., rows, cols, a, b, D]
        return windows.reshape(*lead, self.cells, self.window, width)

    def to_patches(self, x: jax.Array) -> jax.Array:
        """[..., C, W, D] -> [..., N, D]: the inverse of `to_cells`; another C or W is a ValueError."""
        if x.ndim < 3 or x.shape[-3:-1] != (self.cells, self.window):
            cells = [self.cells, self.window]
            raise ValueError(f"a grid of {self.grid} has cells [C, W] = {cells}, but x has shape {x.shape}")
        flat = x.reshape(*x.shape[:-3], self.cells * self.window, x.shape[-1])  # [..., C*W, D]
        return jnp.take(flat, jnp.asarray(self.places), axis=-2)

    @property
    def places(self) -> np.ndarray:
        """int [N]: the slot cell * W + window of every patch."""
        return np.argsort(self._slots_or_n.reshape(-1), kind="stable")[: self.patches]

    @property
    def _slots_or_n(self) -> np.ndarray:
        """`slots`, N where empty."""
        return np.where(self.slots < 0, self.patches, self.slots)
