"""What a checkpoint keeps of one video: the vision part of the model alone, and the frames as a person sees them."""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.data.video import Video, decode, display_size
from sttts_jax.infer.checkpoint import Setting, Subject
from sttts_jax.infer.kept import ScoreView, unpack_mask
from sttts_jax.models.vit import Vit
from sttts_jax.models.vlm import pixels_to_patches
from sttts_jax.pruning.budget import n_kept
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.frame_rows import FrameRows


def look(subject: Subject, frames: np.ndarray, fraction: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """frames uint8 [F, h, w, 3] of one video at the model's size -> (keep bool [F, gh, gw], scores float32 [F, gh, gw]
    in (0, 1), or None for a method without a scorer). Compiles once per number of frames and fraction.
    """
    cfg, count = subject.vlm.vit, len(frames)
    vit = Vit(cfg, subject.pruned(fraction), subject.dtype)
    capacity = n_kept(count, vit.prune.drops, cfg.cells)
    with jax.set_mesh(subject.mesh):
        keep, scores = _look(vit, capacity, subject.params["vit"], jnp.asarray(frames), subject.key(seed))
    grid = (count, *cfg.cell_grid)
    return np.asarray(keep).reshape(grid), None if scores is None else np.asarray(scores).reshape(grid)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(
    vit: Vit, capacity: int, params: object, frames: jax.Array, rng: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    cfg = vit.cfg
    patches = pixels_to_patches(frames[None], CellGrid(cfg.grid, cfg.cell), cfg.patch)
    rows = FrameRows(jnp.zeros((1, len(frames)), jnp.int32), jnp.ones((1, len(frames)), bool))
    seen = vit.apply({"params": params}, patches, rows, capacity, rng)
    return seen.kept.mask[0], None if seen.logits is None else jax.nn.sigmoid(seen.logits[0])


def view_video(
    subject: Subject,
    video: str | Path | bytes,
    setting: Setting,
    *,
    name: str,
    start: float | None = None,
    end: float | None = None,
    seed: int = 0,
    question: str | None = None,
    answer: str | None = None,
    truth: str | None = None,
    kept: str | None = None,
) -> ScoreView:
    """A video file (its path or bytes) through a checkpoint. It is decoded twice, squashed for the model and in its own
    aspect ratio for the page, before the checkpoint is touched. `kept`: the packed mask that an answer was given on,
    which a method that chooses at random would not hit again. Raises VideoError.
    """

    def sampled(size: tuple[int, int]) -> Video:
        return decode(
            video,
            max_frames=setting.max_frames,
            max_fps=setting.max_fps,
            sampling=subject.data.sampling,
            size=size,
            start=start,
            end=end,
            name=name,
        )

    seen, shown = sampled(subject.data.size), sampled(display_size(video, name))
    if kept is None or subject.pruning.scores:
        keep, scores = look(subject, seen.frames, setting.fraction, seed)
    else:
        keep, scores = unpack_mask(kept, (len(seen.frames), *subject.vlm.vit.cell_grid)), None
    height, width = subject.data.size
    return ScoreView(
        video=name,
        frames=shown.frames,
        times=seen.times + (start or 0.0),
        keep=keep,
        fraction=float(subject.pruned(setting.fraction).drops),
        method=subject.pruning.method,
        checkpoint=f"{subject.directory}, step {subject.step}",
        scores=scores,
        question=question,
        answer=answer,
        truth=truth,
        facts=_facts(seen.duration, setting, f"{width} x {height} pixels", keep),
    )


def _facts(duration: float, setting: Setting, size: str, keep: np.ndarray) -> Mapping[str, str]:
    rate = "" if setting.max_fps is None else f" and {setting.max_fps:g} a second"
    return {
        "Clip": f"{duration:.2f} s",
        "Frames": f"{len(keep)}, at most {setting.max_frames}{rate}",
        "Model sees": f"{size} a frame, {keep.shape[1]} x {keep.shape[2]} cells",
    }
