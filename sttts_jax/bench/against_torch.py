"""`bench torch`: our unpruned forward pass against transformers' Molmo2 on the same CPU, with the same weights.

Both sides start from the same normalised patches and tokens of one video and end at the logits of the last token. They
take turns inside one process; a ratio is torch's seconds over ours in the same round, so more than 1 is faster.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from sttts_jax.bench.record import place, show, versions
from sttts_jax.bench.settings import whole_model
from sttts_jax.bench.timing import Compiled, Group, Program, Trial, interleave, quartiles
from sttts_jax.bench.torch_reference import TorchInputs, TorchMolmo2, import_torch, share
from sttts_jax.convert.piece import tensors_of
from sttts_jax.convert.table import pieces
from sttts_jax.models import flops
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.connector import Connector
from sttts_jax.models.llm import Llm
from sttts_jax.models.vit import Vit
from sttts_jax.models.vlm import Vlm, frame_rows
from sttts_jax.ops.attention.kernels import choose_kernels
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.paths import PathLike, write_json
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.config import PruneConfig

PARTS = ("vit", "connector", "llm", "whole")
UNPRUNED = PruneConfig(method="none")


@dataclass(frozen=True)
class TorchRow:
    """One line of the result. The contract of the JSON file: names stay, more may come.

    shape           name of the sizes, see the header
    what            vit, connector, llm (prefill, logits of the last token) or whole
    attention       of the torch side: sdpa or eager; `best` marks the faster one
    ratio           median over rounds of torch seconds / our seconds, and its quartiles in `spread`
    seconds         ours, median, and quartiles in `seconds_spread`; `torch_seconds` theirs
    flops_per_s     what we achieved of the analytic FLOPs
    difference      largest absolute difference of the two outputs over the largest absolute value
    """

    shape: str
    what: str
    frames: int
    tokens: int
    attention: str
    best: bool
    ratio: float
    spread: tuple[float, float]
    seconds: float
    seconds_spread: tuple[float, float]
    torch_seconds: float
    flops: float
    flops_per_s: float
    difference: float

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in the file."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Case:
    """Sizes to compare: a model, F frames of one video, so many text tokens before and after it together."""

    name: str
    cfg: VlmConfig
    frames: int
    text: int
    attention: str = "xla"  # our kernels, one that `choose_kernels` gave
    seed: int = 0

    @property
    def grid(self) -> CellGrid:
        """Cells of a frame."""
        return self.cfg.vit.cell_grid

    @property
    def tokens(self) -> int:
        """S: text, and C cells between two markers for every frame."""
        return self.text + self.frames * (self.cfg.vit.cells + 2)


class Ours:
    """Our side: random parameters, one row of inputs, and the four parts as functions of (parameters, inputs)."""

    def __init__(self, case: Case):
        self.case, cfg = case, case.cfg
        kept = case.frames * cfg.vit.cells
        self.vlm = Vlm(cfg, UNPRUNED, kept, case.tokens, attention=case.attention)
        self.batch = _batch(case)
        init = jax.jit(lambda key: self.vlm.init(key, self.batch))
        self.params = jax.tree.map(_lively, nn.unbox(init(jax.random.key(case.seed)))["params"])

    def parts(self) -> dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...]]]:
        """{part: (function, arguments)}; outputs as `TorchMolmo2.call` gives them, but patches window-major."""
        cfg, batch, attention = self.case.cfg, self.batch, self.case.attention
        kept = self.case.frames * cfg.vit.cells
        rows = frame_rows(batch)
        filled = self.case.grid.filled
        valid = None if filled is None else jnp.tile(jnp.asarray(filled), (1, self.case.frames, 1))
        rule = RowRule.of(batch["vision"], batch["example"], batch["segment"])

        def vit(params: Any, patches: jax.Array) -> jax.Array:
            return Vit(cfg.vit, UNPRUNED, attention=attention).apply({"params": params}, patches, rows, kept).features

        def connector(params: Any, features: jax.Array) -> jax.Array:
            return Connector(cfg.connector, cfg.llm.width).apply({"params": params}, features, valid)

        def llm(params: Any, x: jax.Array) -> jax.Array:
            model = Llm(cfg.llm, attention=attention)
            return model.apply({"params": params}, x, batch["position"], rule, method=_last_logits)

        def whole(params: Any, batch: Any) -> jax.Array:
            return self.vlm.apply({"params": params}, batch, method=_whole_logits)

        generator = np.random.default_rng(self.case.seed)
        features = generator.normal(size=(1, kept, cfg.vit.window, cfg.vit.feature_width)).astype(np.float32)
        if valid is not None:
            features = np.where(valid[..., None], features, 0)
        x = generator.normal(size=(1, self.case.tokens, cfg.llm.width)).astype(np.float32)
        return {
            "vit": (vit, (self.params["vit"], batch["patches"])),
            "connector": (connector, (self.params["connector"], jnp.asarray(features))),
            "llm": (llm, (self.params["llm"], jnp.asarray(x))),
            "whole": (whole, (self.params, batch)),
        }

    def torch_inputs(self) -> TorchInputs:
        """The same inputs for the other side."""
        case, parts = self.case, self.parts()
        grid, frames, patches = case.grid, case.frames, case.cfg.vit.patches
        slots = grid.slots[None] + patches * np.arange(frames)[:, None, None]  # [F, C, W], index into F N
        features = parts["connector"][1][1].reshape(frames, grid.cells, grid.window, -1)
        return TorchInputs(
            pixels=np.array(grid.to_patches(self.batch["patches"][0])),
            pooling=np.where(grid.slots[None] < 0, -1, slots).reshape(-1, grid.window),
            grid=grid.shape,
            tokens=np.asarray(self.batch["tokens"][0]),
            vision=np.asarray(self.batch["vision"][0]),
            x=np.array(parts["llm"][1][1][0]),
            features=np.array(grid.to_patches(features)),
        )

    def flops(self) -> dict[str, float]:
        """Of one run of every part: products only, pairs that the rules allow."""
        case, cfg = self.case, self.case.cfg
        vision = int(self.batch["vision"].sum())
        row = flops.row_flops(
            cfg,
            frames=case.frames,
            kept_cells=None,
            tokens=case.tokens,
            pairs=flops.example_pairs(case.tokens, vision),
            loss_tokens=1,
        )
        return {
            "vit": row.vit_head,
            "connector": row.connector,
            "llm": row.llm + row.llm_head,
            "whole": row.total,
        }


def run(
    command: str,
    say: Callable[[str], None],
    *,
    preset: str,
    vit: Mapping[str, int],
    llm: Mapping[str, int],
    full_width: bool,
    frames: Sequence[int],
    text: int,
    parts: Sequence[str],
    attentions: Sequence[str],
    attention: str,
    rounds: int,
    seed: int,
    path: PathLike | None,
) -> None:
    """The whole measurement: prints a table and writes `path`, if any; `vit`, `llm`: sizes in place of the preset's.

    Raises ValueError with one sentence before anything is compiled.
    """
    import_torch()  # says what to install
    if jax.default_backend() != "cpu":
        raise ValueError("bench torch compares two CPU programs; run it with JAX_PLATFORMS=cpu")
    cfg, reduced = whole_model(preset, not full_width, vit, llm, say)
    kernels = choose_kernels(attention, "cpu", jnp.float32, cfg.vit.patches)
    rows: list[TorchRow] = []
    for count in frames:
        rows += measure(Case(preset, cfg, count, text, kernels, seed), attentions, rounds, say, parts)
    head = header(cfg, command, attention=kernels, reduced=reduced, rounds=rounds, seed=seed, text=text)
    if path:
        write_json(path, {**head, "rows": [row.as_json() for row in rows]})
    used = head["versions"]
    title = f"float32, {head['threads']} threads, torch {used['torch']}, transformers {used['transformers']}"
    show(title, rows_table(rows))


def measure(
    case: Case, attentions: Sequence[str], rounds: int, say: Callable[[str], None], parts: Sequence[str] = PARTS
) -> list[TorchRow]:
    """Compiles ours, builds theirs once for every name in `attentions`, times both in turns on all cores."""
    ours = Ours(case)
    weights = share(tensors_of(ours.params, pieces(case.cfg, "native", scorer=False)))
    theirs = {name: TorchMolmo2(case.cfg, weights, name) for name in attentions}
    inputs = {name: model.inputs(ours.torch_inputs()) for name, model in theirs.items()}
    groups, differences = [], []
    for part in parts:
        function, args = ours.parts()[part]
        base = Trial(Program(function).compiled(*args), args)
        variants = [_torch_trial(model, part, inputs[name][part]) for name, model in theirs.items()]
        result = _in_torch_order(part, base.compiled.call(*args), case)
        differences.append([_difference(result, trial.compiled.call()) for trial in variants])
        groups.append(Group(base, variants))
    say(f"{case.name}: {case.frames} frames, {case.tokens} tokens, {threads()} threads; both sides are ready")
    times = interleave(groups, rounds, say)
    rows = []
    for part, (seconds, table), difference in zip(parts, times, differences, strict=True):
        rows += _rows(case, part, list(theirs), seconds, table, difference, ours.flops()[part])
    return rows


def threads() -> int:
    """Of torch's products. Both sides by default use every core that this process may use."""
    return import_torch()[0].get_num_threads()


def header(cfg: VlmConfig, command: str, **settings: Any) -> dict[str, Any]:
    """Where and on what the rows were measured."""
    torch, transformers = import_torch()
    theirs = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        **place(command),
        "dtype": "float32",
        "sizes": dataclasses.asdict(cfg),
        **settings,
        "threads": threads(),
        "versions": {**versions()["versions"], **theirs},
    }


def rows_table(rows: Sequence[TorchRow]) -> Table:
    """One line a part and torch attention; those that are not torch's fastest are dim."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "frames", "tokens", "torch attention"):
        table.add_column(name, no_wrap=True)
    for name in ("ours s", "torch s", "torch / ours", "quartiles", "GFLOP/s", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.what,
            str(row.frames),
            str(row.tokens),
            row.attention,
            f"{row.seconds:.4g}",
            f"{row.torch_seconds:.4g}",
            f"{row.ratio:.2f} x",
            f"{row.spread[0]:.2f} - {row.spread[1]:.2f}",
            f"{row.flops_per_s / 1e9:.0f}",
            f"{row.difference:.0e}",
            style="" if row.best else "dim",
        )
    return table


def _rows(
    case: Case,
    part: str,
    names: Sequence[str],
    ours: np.ndarray,
    theirs: np.ndarray,
    differences: Sequence[float],
    work: float,
) -> list[TorchRow]:
    middle, *spread = quartiles(ours)
    medians = np.median(theirs, axis=1)
    rows = []
    for i, name in enumerate(names):
        ratio, *ratio_spread = quartiles(theirs[i] / ours)
        rows.append(
            TorchRow(
                shape=case.name,
                what=part,
                frames=case.frames,
                tokens=case.tokens,
                attention=name,
                best=bool(i == medians.argmin()),
                ratio=ratio,
                spread=(ratio_spread[0], ratio_spread[1]),
                seconds=middle,
                seconds_spread=(spread[0], spread[1]),
                torch_seconds=float(medians[i]),
                flops=work,
                flops_per_s=work / middle,
                difference=differences[i],
            )
        )
    return rows


def _torch_trial(model: TorchMolmo2, part: str, inputs: dict[str, Any]) -> Trial:
    return Trial(Compiled(lambda: model.call(part, inputs), 0.0, 0.0), ())


def _in_torch_order(part: str, result: jax.Array, case: Case) -> np.ndarray:
    """Features [1, F C, W, i] -> [F, N, i], pooled [1, F C, E] -> [F C, E]; logits stay."""
    if part == "vit":
        grid = case.grid
        cells = result.reshape(case.frames, grid.cells, grid.window, -1)
        return np.asarray(grid.to_patches(cells))
    return np.asarray(result[0] if part == "connector" else result)


def _difference(ours: np.ndarray, theirs: Any) -> float:
    value = theirs.numpy()
    assert value.shape == ours.shape, (value.shape, ours.shape)
    return float(np.abs(value - ours).max() / np.abs(value).max())


def _last_logits(llm: Llm, x: jax.Array, positions: jax.Array, rule: RowRule) -> jax.Array:
    hidden, _ = llm(x, positions, rule)
    return llm.logits(hidden[:, -1])


def _whole_logits(vlm: Vlm, batch: Any) -> jax.Array:
    hidden, _ = vlm(batch)
    return vlm.llm.logits(hidden[:, -1])


def _lively(leaf: jax.Array) -> jax.Array:
    """Biases and scales that are not 0 and 1, so that leaving one out would show; large arrays are kernels."""
    wave = 0.1 * jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
    return leaf + wave if leaf.size < 2**20 else leaf


def _batch(case: Case) -> dict[str, jax.Array]:
    """One example of the data contract, frames as normalised patches: text, the video, text."""
    cfg, frames, cells = case.cfg, case.frames, case.cfg.vit.cells
    generator = np.random.default_rng(case.seed)
    lead = case.text // 2
    tokens = generator.integers(0, cfg.llm.vocab, case.tokens)  # [S]
    place = np.full(case.tokens, -1)
    vision = np.zeros(case.tokens, bool)
    video = slice(lead, case.tokens - case.text + lead)
    one = [cfg.llm.vocab + 1, *[cfg.llm.vocab] * cells, cfg.llm.vocab + 2]  # a frame: C cells between two markers
    tokens[video], vision[video] = one * frames, True
    place[tokens == cfg.llm.vocab] = np.arange(frames * cells)
    patches = generator.uniform(-1, 1, (1, frames, cells, case.grid.window, 3 * cfg.vit.patch**2))  # [1, F, C, W, ..]
    if case.grid.filled is not None:
        patches = np.where(case.grid.filled[..., None], patches, 0)
    zeros = np.zeros(case.tokens)
    fields = {"tokens": tokens, "targets": zeros, "cells": place, "example": zeros, "segment": zeros}
    row = {name: value.astype(np.int32) for name, value in fields.items()}
    row |= {"position": np.arange(case.tokens, dtype=np.int32), "weights": zeros.astype(np.float32), "vision": vision}
    row |= {"frame_item": np.zeros(frames, np.int32), "frame_prunable": np.ones(frames, bool)}
    batch = {name: jnp.asarray(value)[None] for name, value in row.items()}
    return {**batch, "patches": jnp.asarray(patches, jnp.float32)}
