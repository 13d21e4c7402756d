"""sttts-jax score: show which parts of a video a checkpoint keeps.

    sttts-jax score --checkpoint runs/demo/scorer --video clip.mp4 --out clip.html
    sttts-jax score --checkpoint runs/demo/scorer --video clip.mp4 --out clip.npz --pruned_fraction 0.8

The page stands alone: frames with dropped cells dimmed, kept share of every frame, score maps. The .npz holds `keep`
bool [F, gh, gw], `times` float64 [F] in seconds of the file, `fraction`, and, for methods with a scorer, `scores`
float32 [F, gh, gw].
"""

import argparse
import sys

from etils import epy

from sttts_jax.cli.arguments import add_method, add_pruned_fraction, add_sampling
from sttts_jax.cli.main import run

with epy.lazy_imports():
    from sttts_jax import api


def main(argv: list[str]) -> int:
    """Writes the file. Raises ValueError with one sentence for a bad file or setting, before anything is compiled."""
    args = _parser().parse_args(argv)
    view = api.score(
        args.checkpoint,
        args.video,
        args.out,
        method=args.method,
        pruned_fraction=args.pruned_fraction,
        max_frames=args.max_frames,
        max_fps=args.max_fps,
        sampling=args.sampling,
        start=args.start,
        end=args.end,
        seed=args.seed,
    )
    kept = f"{view.keep.sum():,} of {view.keep.size:,} cells kept"
    print(f"{view.video}: {len(view.keep)} frames, {kept}; see {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's workdir, or one step")
    parser.add_argument("--video", required=True, metavar="FILE", help="mp4, mov, mkv, webm, avi, ts, gif, ..")
    parser.add_argument("--out", required=True, metavar="FILE", help="OUT.html or OUT.npz")
    add_method(parser)
    add_pruned_fraction(parser)
    parser.add_argument("--max_frames", type=int, help="(default: as trained)")
    parser.add_argument("--max_fps", type=float, help="frames a second at most (default: as trained)")
    add_sampling(parser)
    parser.add_argument("--start", type=float, help="of the clip, seconds")
    parser.add_argument("--end", type=float, help="of the clip, seconds")
    parser.add_argument("--seed", type=int, default=0, help="for methods that choose at random (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run("score", main))
