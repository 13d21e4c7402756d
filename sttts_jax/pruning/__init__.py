"""Spatio-temporal token pruning for any Flax vision transformer (STTS, arXiv 2603.18004).

    rows   = FrameRows(item, prunable)                 # which frame belongs to which video
    logits = Scorer(heads, head_dim, mlp)(x, rows)     # one score a cell, float32 logits
    bias   = soft_bias(logits, rows, grid)             # how the task loss reaches the scorer
    whole  = WholeFrames(key_bias=bias)                # what the block that feels it runs on: attention inside frames
    kept   = select_cells(logits, rows, fraction, capacity)  # exact budget, static shape
    layout = stream_layout(kept)                       # survivors <-> dense arrays, and back

Names load on first use, so that data workers can import `pruning.budget` without jax.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sttts_jax.pruning.aux_loss import neighbour_cosine as neighbour_cosine
    from sttts_jax.pruning.aux_loss import temporal_loss as temporal_loss
    from sttts_jax.pruning.baselines import easy_scores as easy_scores
    from sttts_jax.pruning.baselines import random_scores as random_scores
    from sttts_jax.pruning.baselines import reference_tracking_scores as reference_tracking_scores
    from sttts_jax.pruning.bias import soft_bias as soft_bias
    from sttts_jax.pruning.bins import BinLayout as BinLayout
    from sttts_jax.pruning.bins import bin_layout as bin_layout
    from sttts_jax.pruning.bins import plan_bins as plan_bins
    from sttts_jax.pruning.budget import as_fraction as as_fraction
    from sttts_jax.pruning.budget import n_drop as n_drop
    from sttts_jax.pruning.budget import n_kept as n_kept
    from sttts_jax.pruning.budget import row_capacity as row_capacity
    from sttts_jax.pruning.cells import CellGrid as CellGrid
    from sttts_jax.pruning.config import PruneConfig as PruneConfig
    from sttts_jax.pruning.frame_rows import FrameRows as FrameRows
    from sttts_jax.pruning.layout import FlatFrames as FlatFrames
    from sttts_jax.pruning.layout import Layout as Layout
    from sttts_jax.pruning.layout import Undropped as Undropped
    from sttts_jax.pruning.layout import WholeFrames as WholeFrames
    from sttts_jax.pruning.layout import survivors as survivors
    from sttts_jax.pruning.layout import whole_frames as whole_frames
    from sttts_jax.pruning.pack import pack_cells as pack_cells
    from sttts_jax.pruning.pack import take_rows as take_rows
    from sttts_jax.pruning.pack import unpack_cells as unpack_cells
    from sttts_jax.pruning.ragged import RaggedLayout as RaggedLayout
    from sttts_jax.pruning.ragged import ragged_layout as ragged_layout
    from sttts_jax.pruning.saturation import saturated_share as saturated_share
    from sttts_jax.pruning.scorer import Scorer as Scorer
    from sttts_jax.pruning.select import Kept as Kept
    from sttts_jax.pruning.select import select_cells as select_cells
    from sttts_jax.pruning.staircase import StreamLayout as StreamLayout
    from sttts_jax.pruning.staircase import stairs as stairs
    from sttts_jax.pruning.staircase import stream_layout as stream_layout
