"""sttts-jax convert: Molmo2 as Hugging Face publishes it to an Orbax checkpoint of this package, and back.

    sttts-jax convert --from hf:Molmo2-4B --to orbax:ckpt/molmo2-4b
    sttts-jax convert --from hf:allenai/Molmo2-4B --to orbax:ckpt/molmo2-4b
    sttts-jax convert --from hf:Molmo2-4B --to orbax:ckpt/molmo2-4b-stts --scorer scorer.safetensors
    sttts-jax convert --vision hf:siglip2-so400m --llm hf:Qwen3-4B --to orbax:ckpt/start
    sttts-jax convert --from orbax:runs/mine --to hf:out --names native --dtype bfloat16

hf:DIR is a folder; hf:org/name, where there is no such folder, is downloaded from the hub (the extra `hub`).

The result of the first is read by every other command, and by a config's `init_from`. It keeps the dtype and the side
files of its source, so that the way back gives the same tensors. Without --scorer, a scorer that lies in the source is
taken along: among its tensors, or in its scorer.safetensors, which is also where the way back puts it.

Everything is checked before anything is written, the target appears when it is whole, and memory holds about one
tensor at a time. Only safetensors and JSON are read.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from etils import epy

from sttts_jax.cli.main import run

with epy.lazy_imports():
    from sttts_jax import api
    from sttts_jax.convert import hub

KINDS = ("hf", "orbax")
BOTH = ("dtype", "dry_run")
FROM_HF = ("vision", "llm", "scorer", "tokenizer", "seed")
TO_HF = ("names", "shard_gb")


def main(argv: list[str]) -> int:
    """Converts. Raises ValueError or FileNotFoundError with one sentence, before anything is written."""
    args = _parser().parse_args(argv)
    kind, target = _place("--to", args.to)
    _refuse(args, FROM_HF if kind == "hf" else TO_HF, kind)
    # Host work: an accelerator may be busy with the training whose checkpoint this is.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if kind == "hf":
        print(api.convert_to_hf(_only("--from", args.source, "orbax"), target, **_given(args, TO_HF)))
    else:
        source = _sources(args)
        print(api.convert_from_hf(source, target, **_given(args, FROM_HF)))
    return 0


def _refuse(args: argparse.Namespace, names: Sequence[str], kind: str) -> None:
    given = next((name for name in names if getattr(args, name) is not None), None)
    if given is not None:
        raise ValueError(f"--{given} has no meaning for --to {kind}:DIR; leave it out")


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The arguments of these names, and of both directions, that stand in the command."""
    found = {name: getattr(args, name) for name in (*names, *BOTH)}
    return {name: value for name, value in found.items() if value is not None}


def _sources(args: argparse.Namespace) -> str | None:
    """The directory of --from; None with --vision and --llm, which become directories in `args`."""
    if args.vision is None and args.llm is None:
        return _from_hub("--from", args.source)
    if args.source is not None or args.vision is None or args.llm is None:
        raise ValueError("give either --from hf:DIR, or both --vision hf:DIR and --llm hf:DIR")
    args.vision, args.llm = _from_hub("--vision", args.vision), _from_hub("--llm", args.llm)
    return None


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


def _from_hub(name: str, text: str | None) -> str:
    return hub.hub_folder(_only(name, text, "hf"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--from", dest="source", metavar="KIND:DIR", help="hf:DIR, or orbax:DIR (a run, a converted one, a step)")
    add("--to", required=True, metavar="KIND:DIR", help="orbax:DIR or hf:DIR; must not exist, or be empty")
    add("--dtype", metavar="float32|bfloat16", help="of all tensors (default: as stored)")
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
    group.add_argument(
        "--names", metavar="hub|native|training", help="of the tensors (default: as the source's config.json, or hub)"
    )
    group.add_argument("--shard_gb", type=float, metavar="GB", help="size of a file at most (default: 5)")
    return parser


if __name__ == "__main__":
    sys.exit(run("convert", main))
