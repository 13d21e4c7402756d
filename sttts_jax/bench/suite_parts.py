"""The parts of `bench suite`: their shapes on the device at hand, and how long each takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.bench import infer, pruning, train
from sttts_jax.bench.bound import row_pass_flops, scope_flops
from sttts_jax.bench.distributions import DISTRIBUTIONS, make_scores
from sttts_jax.bench.memory import device_gib, infer_gib, train_gib
from sttts_jax.bench.rows import UNPRUNED, Load
from sttts_jax.bench.scopes import Shapes
from sttts_jax.bench.sizes import thinned
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.presets import preset
from sttts_jax.ops.attention.kernels import choose_kernels

WHOLE = "molmo2-4b"
TINY = "tiny"
SHARES = tuple(map(Fraction, ("1", "3/4", "2/3", "1/2", "1/3", "1/4", "1/6", "1/8")))
ROOM = 0.9  # of the device's memory: the arithmetic is rough
ROUNDS = {"layer": 9, "train": 5, "prefill": 9}

Measured = tuple[Sequence[pruning.Row], Sequence[pruning.Row]]


@dataclass(frozen=True)
class Scene:
    """The device and what it can hold: models of training and of inference, and the words about what is left out."""

    cpu: bool
    preset: str
    dtype: Any
    attention: str
    trained: VlmConfig
    served: VlmConfig
    frames: int
    texts: tuple[int, int]
    whole: bool
    said: tuple[str, ...]

    def load(self, frames: int, videos: int, text: int, remat: str = "full") -> Load:
        """Rows of the model that is trained, or with remat "none" of the one that is served."""
        vlm = self.trained if remat == "full" else self.served
        return Load(vlm, frames, videos, text, 1, self.dtype, remat, self.attention)


@dataclass(frozen=True)
class Part:
    """`run` measures some of `fractions`; `smaller` is measured where the device has too little memory after all.

    For estimates: `compile_s` of a program, and two numbers each, at no fraction and for one more: how many `programs`
    there are (starting values are a part of one), and `turn`, the FLOPs of a round.
    """

    name: str
    kind: str
    fractions: Sequence[Fraction]
    run: Callable[[Sequence[Fraction], float, Callable[[str], None]], Measured]
    compile_s: float
    programs: tuple[float, float]
    turn: tuple[float, float]
    rounds: int
    settings: dict[str, Any] = field(default_factory=dict)
    smaller: Callable[[], "Part"] | None = None

    def seconds(self, fractions: Sequence[Fraction], compile_s: float, speed: float) -> float:
        """About how long it takes; `speed` FLOP/s."""
        programs, turn = (first + more * len(fractions) for first, more in (self.programs, self.turn))
        return compile_s * programs + (self.rounds + 1) * turn / speed


def scene() -> Scene:
    """Molmo2-4B on an accelerator, as much of it as the device holds; tiny shapes on a CPU."""
    platform = jax.default_backend()
    if platform == "cpu":
        tiny = preset(TINY)
        kernels = choose_kernels("auto", platform, jnp.float32, tiny.vit.patches)
        line = "no accelerator: tiny shapes run in the place of Molmo2-4B's; they prove the suite and measure nothing"
        return Scene(True, TINY, jnp.float32, kernels, tiny, tiny, 4, (8, 24), False, (line,))
    model = preset(WHOLE)
    kernels = choose_kernels("auto", platform, jnp.bfloat16, model.vit.patches)
    one = Scene(False, WHOLE, jnp.bfloat16, kernels, model, model, 64, (200, 2250), True, ())
    return held(one, device_gib())


def held(one: Scene, gib: float) -> Scene:
    """The scene with models that a device of `gib` GiB holds, in training and in inference."""
    said, text = [], max(one.texts)
    trained, need = _largest(one.trained, lambda m: train_gib(replace(one, trained=m).load(one.frames, 2, text)), gib)
    served, _ = _largest(
        one.served, lambda m: infer_gib(replace(one, served=m).load(2 * one.frames, 1, text, "none")), gib
    )
    vit, llm = one.trained.vit.layers, one.trained.llm.layers
    if trained != one.trained:
        said.append(
            f"training all of {one.preset} on {one.frames} frames x 2 takes about {need:.0f} GiB and there are "
            f"{gib:.0f}, so {trained.vit.layers} of {vit} ViT and {trained.llm.layers} of {llm} language model blocks "
            f"are trained, with {trained.llm.vocab:,} of {one.trained.llm.vocab:,} words"
        )
    if served != one.served:
        said.append(
            f"prefill runs with {served.vit.layers} of {vit} ViT and {served.llm.layers} of {llm} language model blocks"
            f", as many as {gib:.0f} GiB hold"
        )
    whole = one.whole and not said
    if whole:
        said.append(f"training all of {one.preset} takes about {need:.0f} of {gib:.0f} GiB: nothing is left out")
    return replace(one, trained=trained, served=served, whole=whole, said=tuple(said))


def _largest(model: VlmConfig, need: Callable[[VlmConfig], float], gib: float) -> tuple[VlmConfig, float]:
    """(as much of the model as fits, what the whole needs)."""
    for share in SHARES:
        found = model if share == 1 else thinned(model, share)
        if need(found) <= ROOM * gib:
            break
    else:
        raise ValueError(f"the device holds {gib:.1f} GiB, too few for an eighth of the model; use a larger one")
    return found, need(model)


def parts_of(one: Scene, fractions: Sequence[Fraction]) -> list[Part]:
    """What matters most comes first."""
    short, long = one.texts
    return [
        _train_part(one, fractions, short),
        _prefill_part(one, fractions[:1]),
        _layer_part(one, fractions),
        _train_part(one, fractions, long),
    ]


def _scores(names: Sequence[str], load: Any, videos: int, cells: int) -> pruning.Scores:
    def make(fraction: Fraction) -> dict[str, np.ndarray]:
        shape = (load.batch, videos * load.frames, cells)
        draws = {name: make_scores(name, 0, videos * load.batch, load.frames, cells, fraction) for name in names}
        return {name: draw.reshape(shape) for name, draw in draws.items()}

    return make


def _train_part(one: Scene, fractions: Sequence[Fraction], text: int) -> Part:
    load, rounds = one.load(one.frames, 2, text), ROUNDS["train"]
    scores = _scores(("uniform",), load, 2, load.vlm.vit.cells)

    def run(chosen: Sequence[Fraction], ceiling: float, say: Callable[[str], None]) -> Measured:
        return train.measure(train.TrainPlan(load, chosen, ("staircase",), scores, rounds), ceiling, say)

    step = row_pass_flops("train", load.vlm, load.flops(UNPRUNED, None)[0], 2 * load.frames, load.remat)

    def half() -> Part:
        less = replace(one, trained=thinned(one.trained, Fraction(1, 2)))
        vit, llm = less.trained.vit.layers, less.trained.llm.layers
        return replace(
            _train_part(less, fractions, text), name=f"{name}, {vit} ViT and {llm} language model blocks", smaller=None
        )

    name = f"training, {one.frames} frames x 2, {text} text tokens"
    guess = 8.0 if one.cpu else 30.0
    settings = {"remat": load.remat, "rounds": rounds}
    return Part(name, "train", fractions, run, guess, (1.4, 1), (step, 0.7 * step), rounds, settings, half)


def _prefill_part(one: Scene, fractions: Sequence[Fraction]) -> Part:
    base, load = (one.load(frames, 1, one.texts[0], "none") for frames in (one.frames, 2 * one.frames))
    rounds = ROUNDS["prefill"]
    scores = _scores(("uniform",), load, 1, load.vlm.vit.cells)

    def run(chosen: Sequence[Fraction], ceiling: float, say: Callable[[str], None]) -> Measured:
        plan = infer.InferPlan(base, load, chosen, ("staircase",), infer.WHATS, 16, scores, rounds)
        return infer.measure(plan, ceiling, say)

    step = sum(row.total for row in load.flops(UNPRUNED, None, logits=1))
    name = f"inference, {load.frames} frames against {base.frames} unpruned"
    guess = 3.0 if one.cpu else 15.0
    # Prefill, time to first token, and the decoding of 16 tokens, which costs as much again at most.
    return Part(
        name, "infer", fractions, run, guess, (2.4, 2), (0, 3 * 2 * step), rounds, {"remat": "none", "rounds": rounds}
    )


def _layer_part(one: Scene, fractions: Sequence[Fraction]) -> Part:
    vit, rounds = one.served.vit, ROUNDS["layer"]
    shapes = Shapes(vit, one.frames, 1, one.dtype, attention=one.attention)
    passes, cost = ("forward", "train"), scope_flops("layer", vit, None, one.frames, 1)
    scores = _scores(DISTRIBUTIONS, Load(one.served, one.frames, 1, 1, 1, one.dtype), 1, vit.cells)

    def run(chosen: Sequence[Fraction], ceiling: float, say: Callable[[str], None]) -> Measured:
        plan = pruning.Plan("layer", shapes, chosen, ("staircase",), passes, scores, rounds)
        return pruning.measure(plan, ceiling, say)

    name = f"one ViT block, {one.frames} frames"
    guess = 1.0 if one.cpu else 5.0
    settings = {"remat": "none", "rounds": rounds}
    turn = (1 + 3) * (1 + len(DISTRIBUTIONS)) * cost  # forward and training, the baseline and its variants
    return Part(name, "layer", fractions, run, guess, (2, 2), (0, turn), rounds, settings)
