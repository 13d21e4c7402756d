"""Cells: where every patch goes, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.pruning.cells import CellGrid

GRIDS = [((6, 6), (2, 2)), ((27, 27), (3, 3)), ((7, 5), (3, 3)), ((4, 4), (3, 3)), ((5, 8), (2, 4)), ((3, 3), (1, 1))]


@pytest.mark.parametrize(("grid", "cell"), GRIDS)
def test_patches_lie_in_their_window(grid: tuple[int, int], cell: tuple[int, int]) -> None:
    cells = CellGrid(grid, cell)
    patches = np.arange(1, cells.patches + 1, dtype=np.float32).reshape(-1, 1)
    pad = [-grid[i] % cell[i] for i in range(2)]
    padded = np.pad(patches.reshape(grid), [(p // 2, p - p // 2) for p in pad])
    rows, cols = padded.shape[0] // cell[0], padded.shape[1] // cell[1]
    assert cells.shape == (rows, cols) and cells.cells == rows * cols
    got = np.asarray(cells.to_cells(jnp.asarray(patches)))[..., 0]
    for row in range(rows):
        for col in range(cols):
            window = padded[row * cell[0] : (row + 1) * cell[0], col * cell[1] : (col + 1) * cell[1]]
            np.testing.assert_array_equal(got[row * cols + col], window.reshape(-1))
    filled = got > 0
    assert (cells.filled is None) == filled.all()
    assert cells.filled is None or (cells.filled == filled).all()


@pytest.mark.parametrize(("grid", "cell"), GRIDS)
def test_back_to_patches(grid: tuple[int, int], cell: tuple[int, int]) -> None:
    cells = CellGrid(grid, cell)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, cells.patches, 4)), jnp.float32)
    np.testing.assert_array_equal(cells.to_patches(cells.to_cells(x)), x)
