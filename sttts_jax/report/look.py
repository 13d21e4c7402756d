"""What a checkpoint keeps of one video: the vision part of the model alone, and the frames as a person sees them."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.data.video import Video, decode, display_size
from sttts_jax.evals.masks import unpack_mask
from sttts_jax.infer.checkpoint import Checkpoint, Setting
from sttts_jax.infer.scene import Answer, Scene
from sttts_jax.models.vit import Vit
from sttts_jax.models.vlm import pixels_to_patches
from sttts_jax.paths import PathLike, as_path, check_writable, write_bytes, write_text
from sttts_jax.pruning.budget import n_kept
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.report.page import score_page
from sttts_jax.report.views import ScoreView, Turn
from sttts_jax.train.kinds import check_seed

ENDINGS = (".html", ".npz")


def look(
    checkpoint: Checkpoint, frames: np.ndarray, fraction: str, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """frames uint8 [F, h, w, 3] of one video at the model's size -> (keep bool [F, gh, gw], scores float32 [F, gh, gw]
    in (0, 1), or None for a method without a scorer). Compiles once per number of frames and fraction.
    """
    cfg, count = checkpoint.vlm.vit, len(frames)
    vit = checkpoint.vit(fraction)
    capacity = n_kept(count, vit.prune.removed, cfg.cells)
    with jax.set_mesh(checkpoint.mesh):
        keep, scores = _look(vit, capacity, checkpoint.params["vit"], jnp.asarray(frames), checkpoint.key(seed))
    grid = (count, *cfg.cell_grid.shape)
    return np.asarray(keep).reshape(grid), None if scores is None else np.asarray(scores).reshape(grid)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(
    vit: Vit, capacity: int, params: object, frames: jax.Array, rng: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    cfg = vit.cfg
    patches = pixels_to_patches(frames[None], cfg.cell_grid, cfg.patch)
    rows = FrameRows(jnp.zeros((1, len(frames)), jnp.int32), jnp.ones((1, len(frames)), bool))
    seen = vit.apply({"params": params}, patches, rows, capacity, rng)
    return seen.kept.mask[0], None if seen.logits is None else jax.nn.sigmoid(seen.logits[0])


def view_video(
    checkpoint: Checkpoint,
    video: str | Path | bytes,
    setting: Setting,
    *,
    name: str,
    start: float | None = None,
    end: float | None = None,
    seed: int = 0,
    kept: str | None = None,
    dialogue: Sequence[Turn] = (),
) -> ScoreView:
    """A video file (its path or bytes) through a checkpoint. It is decoded twice, squashed for the model and in its own
    aspect ratio for the page, before the checkpoint is touched.

    name        of the video, on the page and in errors
    start, end  of the clip, seconds
    seed        of methods that choose at random
    kept        the packed mask that an answer was given on, which a method that chooses at random would not hit again
    dialogue    what was asked and said

    Raises VideoError.
    """

    def sampled(size: tuple[int, int]) -> Video:
        chosen = checkpoint.frame_sampling(setting)
        return decode(video, chosen, size=size, start=start, end=end, name=name, limits=limits)

    check_seed(seed)
    limits = checkpoint.data.limits
    seen, shown = sampled(checkpoint.data.size), sampled(display_size(video, name, limits=limits))
    if kept is None or checkpoint.pruning.has_scorer:
        keep, scores = look(checkpoint, seen.frames, setting.fraction, seed)
    else:
        keep, scores = unpack_mask(kept, (len(seen.frames), *checkpoint.vlm.vit.cell_grid.shape)), None
    return _view(checkpoint, setting, name, shown, seen.times + (start or 0.0), keep, scores, dialogue)


def view_scene(scene: Scene, answers: Sequence[Answer]) -> ScoreView:
    """What was kept of the video of a scene, with what was asked. Decodes it once more, to be seen.

    Raises ValueError without a video, or before a question.
    """
    shown = scene.shown()
    if scene.keep is None:
        raise ValueError(f"{scene.name}: what is kept is known after a question; ask one first")
    dialogue = [Turn(answer.question, answer.text) for answer in answers]
    return _view(scene.checkpoint, scene.setting, scene.name, shown, scene.times, scene.keep, scene.scores, dialogue)


def _view(
    checkpoint: Checkpoint,
    setting: Setting,
    name: str,
    shown: Video,
    times: np.ndarray,
    keep: np.ndarray,
    scores: np.ndarray | None,
    dialogue: Sequence[Turn],
) -> ScoreView:
    height, width = checkpoint.data.size
    rate = "" if setting.max_fps is None else f" and {setting.max_fps:g} a second"
    return ScoreView(
        video=name,
        frames=shown.frames,
        times=times,
        keep=keep,
        fraction=float(checkpoint.pruned(setting.fraction).removed),
        method=checkpoint.pruning.method,
        checkpoint=f"{checkpoint.directory}, step {checkpoint.step}",
        scores=scores,
        dialogue=dialogue,
        facts={
            "Clip": f"{shown.duration:.2f} s",
            "Frames": f"{len(keep)}, at most {setting.max_frames}{rate}",
            "Model sees": f"{width} x {height} pixels a frame, {keep.shape[1]} x {keep.shape[2]} cells",
        },
    )


def write_view(view: ScoreView, path: PathLike) -> None:
    """A page (.html), or arrays (.npz): `keep` bool [F, gh, gw], `times` float64 [F] in seconds of the file,
    `fraction`, and, for methods with a scorer, `scores` float32 [F, gh, gw]. Raises ValueError for another ending.
    """
    check_file(path)
    if as_path(path).suffix == ".html":
        write_text(path, score_page(view))
        return
    arrays: dict[str, Any] = {"keep": view.keep, "times": view.times, "fraction": np.float64(view.fraction)}
    if view.scores is not None:
        arrays["scores"] = view.scores
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def check_file(path: PathLike) -> None:
    """Raises ValueError for a file that `write_view` does not write, and where it cannot be written."""
    check_writable(path)
    if as_path(path).suffix not in ENDINGS:
        raise ValueError(f"{path} must end in {' or '.join(ENDINGS)}")
