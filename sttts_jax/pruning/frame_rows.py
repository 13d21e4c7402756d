"""Which frame of a row belongs to which item (video or image)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

CELL_AXES = "C, W, D"  # what follows [..., F] in the shape of cells


class FrameRows(NamedTuple):
    """The frames of packed rows. Items are contiguous and numbered in order; -1 is a padding frame.

    item      int32 [..., F]
    prunable  bool  [..., F]   True for the frames of a video; images and multi-image items are False

    >>> FrameRows(item=[0, 0, 0, 1, 1, -1], prunable=[1, 1, 1, 0, 0, 0])  # a video of 3 frames, 2 images, padding
    """

    item: jax.Array
    prunable: jax.Array

    def check_shape(self, name: str, shape: tuple[int, ...], axes: str) -> None:
        """Raises ValueError unless `shape`, that of the array called `name`, is [..., F] of these rows and then `axes`.

        Shapes are static, so under `jax.jit` this speaks at trace time and costs nothing at run time.
        """
        rows, prunable = self.item.shape, self.prunable.shape
        if rows != prunable:
            raise ValueError(f"rows.item has shape {rows} but rows.prunable {prunable}; give one value a frame in both")
        if shape[: len(rows)] == rows and len(shape) == len(rows) + len(axes.split(", ")):
            return
        wanted = f"({', '.join(map(str, rows))}, {axes})"
        mend = "give both the same rows and frames"
        if axes == CELL_AXES and len(shape) == len(rows) + 2:
            mend = "put patches [..., F, N, D] into cells first, with CellGrid.to_cells"
        raise ValueError(f"{name} has shape {shape}, but rows of shape {rows} need {wanted}; {mend}")

    @property
    def valid(self) -> jax.Array:
        """bool [..., F]: not padding."""
        return self.item >= 0

    @property
    def video(self) -> jax.Array:
        """bool [..., F]: frames of videos, the first ones among them."""
        return self.valid & self.prunable

    @property
    def first(self) -> jax.Array:
        """bool [..., F]: the first frame of every item."""
        return self.valid & (self.item != _shifted(self.item, -1, axis=-1))

    @property
    def droppable(self) -> jax.Array:
        """bool [..., F]: frames whose cells may be dropped, those of videos after the first."""
        return self.video & ~self.first


def previous(x: jax.Array, cut: jax.Array | None) -> jax.Array:
    """x [..., F, C, D] moved by one frame; zero before frame 0 and in the frames where `cut` [..., F] is set."""
    moved = _shifted(x, 0, axis=-3)
    return moved if cut is None else jnp.where(cut[..., None, None], 0, moved)


def _shifted(x: jax.Array, fill: int, axis: int) -> jax.Array:
    """x with every frame moved on by one and `fill` in the first; padding, because a concatenation of frames that lie
    over devices would move them all."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (1, -1, 0)
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), edges)
