"""sttts-jax convert: Molmo2 as Hugging Face publishes it to an Orbax checkpoint of this package, and back.

    sttts-jax convert --from hf:Molmo2-4B --to orbax:ckpt/molmo2-4b
    sttts-jax convert --from hf:Molmo2-4B --to orbax:ckpt/molmo2-4b-stts --scorer scorer.safetensors
    sttts-jax convert --vision hf:siglip2-so400m --llm hf:Qwen3-4B --to orbax:ckpt/start
    sttts-jax convert --from orbax:runs/mine --to hf:out --names native --dtype bfloat16

The result of the first is read by every other command, and by a config's `init_from`. It keeps the dtype and the side
files of its source, so that the way back gives the same tensors. Without --scorer, a scorer that lies in the source is
taken along: among its tensors, or in its scorer.safetensors, which is also where the way back puts it.

Everything is checked before anything is written, the target appears when it is whole, and memory holds about one
tensor at a time. Only safetensors and JSON are read.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from sttts_jax.cli.main import run

KINDS = ("hf", "orbax")
NAMES = ("hub", "native", "training")
DTYPES = ("float32", "bfloat16")
IMPORT_ONLY = ("vision", "llm", "scorer", "tokenizer", "seed")
EXPORT_ONLY = ("names", "shard_gb")


def main(argv: list[str]) -> int:
    """Converts. Raises ValueError or FileNotFoundError with one sentence, before anything is written."""
    args = _parser().parse_args(argv)
    target_kind, target = _place("--to", args.to)
    others = IMPORT_ONLY if target_kind == "hf" else EXPORT_ONLY
    given = next((name for name in others if getattr(args, name) is not None), None)
    if given is not None:
        raise ValueError(f"--{given} has no meaning for --to {target_kind}:DIR; leave it out")
    # Host work: an accelerator may be busy with the training whose checkpoint this is.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with _unwound_by_sigterm():
        if target_kind == "hf":
            from sttts_jax.convert.to_hf import export_checkpoint

            source = _only("--from", args.source, "orbax")
            shard_gb = 5.0 if args.shard_gb is None else args.shard_gb
            report = export_checkpoint(source, target, args.names or "", args.dtype or "", shard_gb, args.dry_run)
        else:
            from sttts_jax.convert.from_hf import Wanted, import_checkpoint

            wanted = Wanted(args.scorer or "", args.tokenizer or "", args.dtype or "", args.seed or 0)
            report = import_checkpoint(_sources(args), target, wanted, args.dry_run)
    print(report)
    return 0


def _place(name: str, text: str | None) -> tuple[str, str]:
    """('hf', 'DIR') of 'hf:DIR'."""
    kind, colon, directory = (text or "").partition(":")
    if kind not in KINDS or not colon or not directory:
        raise ValueError(
            f"{name} {text or ''} must be {' or '.join(f'{kind}:DIR' for kind in KINDS)}".replace("  ", " ")
        )
    return kind, directory


def _only(name: str, text: str | None, wanted: str) -> str:
    kind, directory = _place(name, text)
    if kind != wanted:
        raise ValueError(f"{name} {text} must be {wanted}:DIR, because --to is the other kind")
    return directory


def _sources(args: argparse.Namespace) -> tuple[str, ...]:
    """(DIR,) of a whole model, (VISION, LLM) of parts."""
    parts = [name for name in ("vision", "llm") if getattr(args, name) is not None]
    if not parts:
        return (_only("--from", args.source, "hf"),)
    if args.source is not None or len(parts) == 1:
        raise ValueError("give either --from hf:DIR, or both --vision hf:DIR and --llm hf:DIR")
    return tuple(_only(f"--{name}", getattr(args, name), "hf") for name in parts)


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """A SIGTERM ends the process by way of its `finally` blocks, which remove what is half written."""

    def stop(number: int, frame: Any) -> None:
        del number, frame
        raise SystemExit(143)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--from", dest="source", metavar="KIND:DIR", help="hf:DIR, or orbax:DIR (a run, a converted one, a step)")
    add("--to", required=True, metavar="KIND:DIR", help="orbax:DIR or hf:DIR; must not exist, or be empty")
    add("--dtype", choices=DTYPES, help="of all tensors (default: as stored)")
    add("--dry_run", action="store_true", help="check everything, write nothing")
    group = parser.add_argument_group("to Orbax")
    group.add_argument("--vision", metavar="hf:DIR", help="instead of --from: a SigLIP 2 of fixed image size, and")
    group.add_argument("--llm", metavar="hf:DIR", help="a Qwen3 or Olmo3; the connector between them is fresh")
    group.add_argument(
        "--scorer", metavar="fresh|PLACE", help="a new one, or a .safetensors file or directory with one"
    )
    group.add_argument("--tokenizer", metavar="DIR", help="with a tokenizer.json (default: that of the source)")
    group.add_argument("--seed", type=int, help="of what is fresh (default: 0)")
    group = parser.add_argument_group("to Hugging Face")
    group.add_argument("--names", choices=NAMES, help="of the tensors (default: as the source's config.json, or hub)")
    group.add_argument("--shard_gb", type=float, metavar="GB", help="size of a file at most (default: 5)")
    return parser


if __name__ == "__main__":
    sys.exit(run("convert", main))
