"""sttts-jax bench tpu: a pruned ViT block compiled for a TPU that is not there."""

import argparse

from sttts_jax.cli.bench import arguments as given

TPU = """A ViT block on survivors against one on all frames, both on the Pallas stream kernel, compiled for a TPU on any
machine (pip install libtpu): the compiler's estimate of seconds, bytes of HBM traffic, temporary memory. Estimates
know nothing of stalls, and for some chips the compiler gives none.
"""


def add(add_parser: given.Add) -> None:
    """The parser of `bench tpu`."""
    parser = add_parser(
        "tpu",
        help="a ViT block compiled for a TPU, on any machine",
        description=TPU,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(measure=_tpu)
    parser.add_argument("--chip", default="v5p", choices=("v5e", "v5p", "v6e"), help="(%(default)s)")
    parser.add_argument("--preset", default="molmo2-4b", help="whose ViT (%(default)s)")
    parser.add_argument("--frames", type=int, default=32, help="of a video (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="videos at once (%(default)s)")
    parser.add_argument("--k", default="0.3,0.5", metavar="K[,K]", help="shares of cells to remove (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows")


def _tpu(args: argparse.Namespace, command: str) -> int:
    given.check_positive(args, "frames", "batch")
    fractions = given.fractions(args.k)
    import jax.numpy as jnp

    from sttts_jax.bench.compiled import measure
    from sttts_jax.bench.record import versions
    from sttts_jax.bench.scopes import Shapes
    from sttts_jax.models.presets import preset
    from sttts_jax.paths import write_json

    shapes = Shapes(preset(args.preset).vit, args.frames, args.batch, jnp.bfloat16, attention="tpu")
    rows = measure(args.chip, shapes, fractions, lambda line: print(line, flush=True))
    if args.json:
        write_json(args.json, {"command": command, **versions(), "rows": [row.as_json() for row in rows]})
    return 0
