"""Layouts: which one is taken, that all hold the same, and that what none can hold is refused when it is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.kernels import STREAM_KERNELS
from sttts_jax.pruning.bins import plan_bins, switch_bins
from sttts_jax.pruning.budget import as_fraction, row_capacity
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.layout import FlatFrames, Layout, Undropped, WholeFrames, survivors, whole_frames
from sttts_jax.pruning.pack import pack_cells, unpack_cells
from sttts_jax.pruning.ragged import RaggedLayout, ragged_layout
from sttts_jax.pruning.select import Kept, select_cells
from sttts_jax.pruning.staircase import StreamLayout, stream_layout
from tests.pruning.cases import frame_rows, scores_like

GRID, FRAMES, WIDTH = CellGrid((7, 5), (3, 3)), 5, 4
HALF = as_fraction("0.5")
CAPACITY = row_capacity(FRAMES, "0.5", GRID.cells)
ROWS = frame_rows([("video", 5)], [("video", 4)], frames=FRAMES)
PATCHES = jnp.asarray(np.random.default_rng(0).standard_normal((2, FRAMES, GRID.patches, WIDTH)), jnp.float32)


def _kept() -> Kept:
    scores = np.stack([scores_like("uniform", FRAMES, GRID.cells, seed) for seed in range(2)])
    return select_cells(jnp.asarray(scores), ROWS, HALF, CAPACITY)


def _layouts() -> dict[str, Layout]:
    """Every layout of the same survivors; of the bins, the rung that always fits."""
    kept, shape = _kept(), (2, FRAMES, GRID.cells, GRID.window, WIDTH)
    _, layouts = switch_bins(kept, False, GRID.filled)
    made = {name: survivors(GRID, kept, name) for name in ("xla", "gpu", "cpu", "tpu")}
    whole = {f"whole {name}": Undropped(whole_frames(GRID, shape, name), kept) for name in ("xla", "gpu", "cpu", "tpu")}
    return {**made, **whole, "bins": layouts[-1]()}


def test_every_layout_gives_back_the_same_stream() -> None:
    @jax.jit
    def streams(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return pack_cells(x, _kept()), {name: made.stream(made.pack(x)) for name, made in _layouts().items()}

    want, got = streams(GRID.to_cells(PATCHES))
    assert len(got) == 9
    for name, stream in got.items():
        np.testing.assert_array_equal(stream, want, err_msg=name)


@pytest.mark.parametrize("kernels", ["xla", "gpu", "cpu", "tpu"])
def test_kernels_for_streams_get_streams_and_the_others_slots(kernels: str) -> None:
    flat = kernels in STREAM_KERNELS
    whole = whole_frames(GRID, GRID.to_cells(PATCHES).shape, kernels)
    assert type(whole) is (FlatFrames if flat else WholeFrames)
    assert type(survivors(GRID, _kept(), kernels)) is (RaggedLayout if flat else StreamLayout)
    np.testing.assert_array_equal(whole.unpack(whole.pack(GRID.to_cells(PATCHES))), GRID.to_cells(PATCHES))


@pytest.mark.parametrize("kernels", ["flash", "auto", ""])
def test_unknown_kernels_are_refused(kernels: str) -> None:
    """Also "auto", which is a choice that is still to be made."""
    sentence = f"no layout is made for the kernels '{kernels}'; choose one of xla, cpu, gpu, tpu"
    for make in (lambda: whole_frames(GRID, (2, 5, 6, 9, 4), kernels), lambda: survivors(GRID, _kept(), kernels)):
        with pytest.raises(ValueError, match=sentence):
            make()
    with pytest.raises(ValueError, match="slots take the kernels xla or gpu"):
        stream_layout(_kept(), kernels=kernels)
    with pytest.raises(ValueError, match="streams take the kernels cpu or tpu"):
        ragged_layout(_kept(), GRID.window, kernels=kernels)


def test_patches_that_are_not_in_cells_are_refused() -> None:
    """[B, F, N, D], and the same with a window axis of its own: both would be packed into garbage."""
    layouts = jax.eval_shape(_layouts)
    for x in (PATCHES, PATCHES[..., None, :], GRID.to_cells(PATCHES)[..., 0]):
        for name, layout in layouts.items():
            if name in ("whole xla", "whole gpu") and x.ndim == 5:
                continue  # refused where they are made, below
            with pytest.raises(ValueError, match="put patches into cells first with CellGrid.to_cells"):
                jax.eval_shape(lambda layout, x: layout.pack(x), layout, x)
        with pytest.raises(ValueError, match="are not in cells.*put them there with CellGrid.to_cells"):
            whole_frames(GRID, x.shape, "xla")
    with pytest.raises(ValueError, match="put them into cells first with CellGrid.to_cells"):
        pack_cells(PATCHES, _kept())
    with pytest.raises(ValueError, match=r"survivors are \[B, K\] = \(2,"):
        unpack_cells(GRID.to_cells(PATCHES), _kept())
    with pytest.raises(ValueError, match="a grid of .7, 5. has 35 patches"):
        GRID.to_cells(PATCHES[..., :-1, :])


def test_a_row_without_a_batch_is_refused() -> None:
    kept = jax.tree.map(lambda x: x[0], _kept())
    x = GRID.to_cells(PATCHES)
    makers = (
        lambda: stream_layout(kept),
        lambda: ragged_layout(kept, GRID.window, kernels="cpu"),
        lambda: plan_bins(kept, False),
        lambda: switch_bins(kept, False, None),
        lambda: pack_cells(x[0], kept),
        lambda: unpack_cells(x[0], kept),
    )
    for make in makers:
        with pytest.raises(ValueError, match=r"a layout is of a batch of rows.*with B = 1 for a single row"):
            make()
