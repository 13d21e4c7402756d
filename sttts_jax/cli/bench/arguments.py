"""Arguments that the benchmarks share: how they are declared, read, and refused in one sentence."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # these import jax, which --help and wrong arguments do without
    from sttts_jax.bench.pruning import Scores
    from sttts_jax.bench.rows import Load
    from sttts_jax.models.config import VlmConfig

Add = Callable[..., argparse.ArgumentParser]

PLOTS = (".png", ".svg", ".pdf")
VIT_SIZES = ("width", "heads", "head_dim", "mlp", "layers")
LLM_SIZES = ("width", "heads", "kv_heads", "head_dim", "mlp", "layers", "vocab")


def add_comparison(parser: argparse.ArgumentParser, *, frames: str, k: str, rounds: int, whose: str) -> None:
    """What every comparison of pruned with unpruned shapes asks."""
    parser.add_argument("--preset", default="molmo2-4b", help=f"whose {whose} (%(default)s)")
    parser.add_argument("--frames", default=frames, metavar="T[,T]", help="of a video (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="rows at once (%(default)s)")
    parser.add_argument("--k", default=k, metavar="K[,K]", help="shares of cells to remove (%(default)s)")
    parser.add_argument(
        "--distributions", metavar="NAME[,NAME]", help="uniform, bursty, scene_cuts, adversarial, scores (default: all)"
    )
    parser.add_argument("--scores", metavar="FILE.npz", help="real scores, of sttts-jax score: distribution `scores`")
    parser.add_argument("--packing", default="staircase", metavar="NAME[,NAME]", help="staircase, bins (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="timed turns of every variant (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the compute (default: float32 on CPU, else bfloat16)"
    )
    parser.add_argument("--attention", default="auto", help="kernels by name (%(default)s: those of the platform)")
    parser.add_argument("--full_width", action="store_true", help="the preset's own sizes without accelerator, too")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and distributions (%(default)s)")
    add_files(parser)


def add_files(parser: argparse.ArgumentParser) -> None:
    """What is left behind."""
    parser.add_argument("--json", metavar="FILE", help="write the rows and where they were measured")
    parser.add_argument("--plot", metavar="FILE", help="draw speed-up and share of the bound: .png, .svg or .pdf")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Sizes of a whole model."""
    parser.add_argument("--text", type=int, default=200, help="tokens of a sample that are not cells (%(default)s)")
    for name in VIT_SIZES:
        parser.add_argument(f"--vit_{name}", type=int, help="instead of the preset's")
    for name in LLM_SIZES:
        parser.add_argument(f"--llm_{name}", type=int, help="instead of the preset's")


def words(text: str, flag: str, known: Sequence[str] = ()) -> list[str]:
    """The different words of a list with commas. Raises ValueError if there is none, or one that is not `known`."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise ValueError(f"{flag} is empty; give one or more, separated by commas")
    wrong = [word for word in found if known and word not in known]
    if wrong:
        raise ValueError(f"{flag} {wrong[0]} is unknown; choose from {', '.join(known)}")
    return found


def fractions(text: str) -> list[Any]:
    """The shares of --k, exact."""
    from sttts_jax.pruning.budget import as_fraction

    found = [as_fraction(word) for word in words(text, "--k")]
    if 0 in found:
        raise ValueError("--k 0 removes nothing; the unpruned baseline is always measured, so leave it out")
    return list(dict.fromkeys(found))


def frame_counts(text: str, flag: str = "--frames") -> list[int]:
    """Lengths of videos."""
    frames = []
    for word in words(text, flag):
        if not word.isdigit() or int(word) < 2:
            raise ValueError(f"{flag} {word} must be a whole number from 2 up: the first frame is never pruned")
        frames.append(int(word))
    return frames


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for a number below 1 under one of these names; None is left alone."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")


def check_files(args: argparse.Namespace) -> None:
    """Raises ValueError for a name that cannot be written, before anything is measured."""
    if args.plot and Path(args.plot).suffix.lower() not in PLOTS:
        raise ValueError(f"--plot {args.plot} must end in {', '.join(PLOTS)}")
    for name in ("json", "plot"):
        path = getattr(args, name)
        if path and Path(path).is_dir():
            raise ValueError(f"--{name} {path} is a directory; name a file in it")


def packings(args: argparse.Namespace) -> list[str]:
    """The names of --packing."""
    from sttts_jax.pruning.config import PACKINGS

    return words(args.packing, "--packing", PACKINGS)


def dtype(args: argparse.Namespace, cpu: bool) -> Any:
    """The compute's."""
    import jax.numpy as jnp

    name = args.dtype or ("float32" if cpu else "bfloat16")
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


def model(args: argparse.Namespace, cpu: bool) -> "tuple[VlmConfig, bool]":
    """(sizes of a whole model, whether they were reduced), which is said."""
    from sttts_jax.bench.sizes import bench_vlm

    check_positive(args, *(f"vit_{name}" for name in VIT_SIZES), *(f"llm_{name}" for name in LLM_SIZES))
    given = vars(args)
    vit = {name: given[f"vit_{name}"] for name in VIT_SIZES if given[f"vit_{name}"] is not None}
    llm = {name: given[f"llm_{name}"] for name in LLM_SIZES if given[f"llm_{name}"] is not None}
    vlm, reduced = bench_vlm(args.preset, reduce=cpu and not args.full_width, vit=vit, llm=llm)
    if reduced:
        print(
            f"no accelerator: {args.preset} runs at a quarter of its width (ViT {vlm.vit.width}, language model "
            f"{vlm.llm.width}) with {vlm.vit.layers} and {vlm.llm.layers} blocks; --full_width runs it whole",
            flush=True,
        )
    return vlm, reduced


def scores(args: argparse.Namespace, frames: int, grid: tuple[int, int], rows: int, videos: int = 1) -> "Scores":
    """The distributions of the arguments as scores [B, V * F, C] by k.

    A file is read here, so that a bad one stops the run early.
    """
    import numpy as np

    from sttts_jax.bench.distributions import DISTRIBUTIONS, FROM_FILE, file_scores, make_scores

    known = (*DISTRIBUTIONS, FROM_FILE) if args.scores else DISTRIBUTIONS
    names = words(args.distributions or ",".join(known), "--distributions", known)
    cells = grid[0] * grid[1]
    shape = (rows, videos * frames, cells)
    fixed = {}
    if args.scores:
        if FROM_FILE not in names:
            raise ValueError(f"--scores is given but --distributions leaves it out; add the name {FROM_FILE!r} to them")
        fixed[FROM_FILE] = np.tile(file_scores(args.scores, frames, grid), (rows, videos, 1))
    return lambda fraction: {
        name: fixed[name]
        if name in fixed
        else make_scores(name, args.seed, rows * videos, frames, cells, fraction).reshape(shape)
        for name in names
    }


def load(args: argparse.Namespace, frames: int, videos: int, vlm: "VlmConfig", cpu: bool, remat: str) -> "Load":
    """Rows of a whole model."""
    import jax

    from sttts_jax.bench.rows import Load
    from sttts_jax.ops.attention.kernels import choose_kernels
    from sttts_jax.ops.remat import remat_policy

    remat_policy(remat)
    kind = dtype(args, cpu)
    kernels = choose_kernels(args.attention, jax.default_backend(), kind, vlm.vit.patches)
    return Load(vlm, frames, videos, args.text, args.batch, kind, remat, kernels, args.seed)
