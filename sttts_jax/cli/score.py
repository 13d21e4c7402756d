"""sttts-jax score: show which parts of a video a checkpoint keeps.

    sttts-jax score --checkpoint runs/demo/scorer --video clip.mp4 --out clip.html
    sttts-jax score --checkpoint runs/demo/scorer --video clip.mp4 --out clip.npz --pruned_fraction 0.8

The page stands alone: frames with dropped cells dimmed, kept share of every frame, score maps. The .npz holds `keep`
bool [F, gh, gw], `times` float64 [F] in seconds of the file, `fraction`, and, for methods with a scorer, `scores`
float32 [F, gh, gw].
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from sttts_jax.cli.main import run

SUFFIXES = (".html", ".npz")


def main(argv: list[str]) -> int:
    """Writes the file. Raises ValueError with one sentence for a bad file or setting, before anything is compiled."""
    args = _parser().parse_args(argv)
    suffix = Path(args.out).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"--out {args.out} must end in {' or '.join(SUFFIXES)}")
    # Late, so that --help and wrong arguments answer at once.
    import numpy as np

    from sttts_jax.data.video import probe
    from sttts_jax.infer.open import read_checkpoint
    from sttts_jax.paths import write_bytes, write_text
    from sttts_jax.report.look import view_video
    from sttts_jax.report.page import score_page

    probe(args.video)
    checkpoint = read_checkpoint(args.checkpoint)
    setting = checkpoint.setting(args.pruned_fraction, args.max_frames, args.max_fps)
    name = Path(args.video).name
    view = view_video(checkpoint, args.video, setting, name=name, start=args.start, end=args.end, seed=args.seed)
    if suffix == ".html":
        write_text(args.out, score_page(view))
    else:
        arrays: dict[str, Any] = {"keep": view.keep, "times": view.times, "fraction": np.float64(view.fraction)}
        if view.scores is not None:
            arrays["scores"] = view.scores
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(args.out, buffer.getvalue())
    print(f"{name}: {len(view.keep)} frames, {view.keep.sum():,} of {view.keep.size:,} cells kept; see {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's workdir, or one step")
    parser.add_argument("--video", required=True, metavar="FILE", help="any file that FFmpeg reads")
    parser.add_argument("--out", required=True, metavar="FILE", help="OUT.html or OUT.npz")
    parser.add_argument("--pruned_fraction", help="share of cells to remove (default: as trained)")
    parser.add_argument("--max_frames", type=int, help="(default: as trained)")
    parser.add_argument("--max_fps", type=float, help="frames a second at most (default: as trained)")
    parser.add_argument("--start", type=float, help="of the clip, seconds")
    parser.add_argument("--end", type=float, help="of the clip, seconds")
    parser.add_argument("--seed", type=int, default=0, help="for methods that choose at random (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run("score", main))
