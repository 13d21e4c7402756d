"""Compares this package with files that the authors' PyTorch code wrote.

    python -m tests.golden.compare FILE.npz [FILE.npz ...]

A file holds inputs, weights, outputs and gradients of the STTS vision transformer for one packed row (widths, layers,
pruned fraction and item mix of its own). Prints one line a quantity with its error and limit; exits 0 only if all hold.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.models.config import VitConfig
from sttts_jax.models.vit import Vit, VitOutput
from sttts_jax.pruning.aux_loss import neighbour_cosine, temporal_loss
from sttts_jax.pruning.bias import soft_bias
from sttts_jax.pruning.budget import n_kept
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.pack import unpack_cells
from tests.golden.stts_weights import from_reference, to_reference

VALUES, GRADIENTS = 1e-4, 1e-3


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit  # NaN fails


class Golden:
    """One file: the model with its weights, and the row of its inputs."""

    def __init__(self, path: str):
        self.data = np.load(path)
        self.meta = json.loads(bytes(self.data["meta"]).decode())
        m = self.meta
        side = m["grid"] if isinstance(m["grid"], list) else [m["grid"]] * 2
        cell = m["cell"] if isinstance(m["cell"], list) else [m["cell"]] * 2
        self.grid = CellGrid(tuple(side), tuple(cell))
        self.cfg = VitConfig(
            width=m["width"],
            heads=m["heads"],
            head_dim=m["width"] // m["heads"],
            mlp=m["mlp"],
            layers=m["layers"],
            patch=2,
            grid=self.grid.grid,
            cell=self.grid.cell,
            norm_eps=m["norm_eps"],
            feature_layers=(m["layers"] - 1,),
            prune_after=m["prune_after"],
        ).check()
        self.fraction = str(m["pruned_fraction"])
        items = [(kind, n) for kind, n in m["items"]]
        item = [i for i, (_, n) in enumerate(items) for _ in range(n)] + [-1] * m["pad_frames"]
        video = [kind == "video" for kind, n in items for _ in range(n)] + [False] * m["pad_frames"]
        self.rows = FrameRows(jnp.array([item], jnp.int32), jnp.array([video]))
        cells = self.grid.cells
        self.capacity = sum(n_kept(n, self.fraction, cells) if kind == "video" else n * cells for kind, n in items)
        self.params = from_reference(
            {k[8:]: self.data[k] for k in self.data.files if k.startswith("weights/")}, self.cfg
        )
        self.patches = self.grid.to_cells(jnp.asarray(self.data["in/patches"]))[None]

    def model(self, feature: int | None = None, **prune) -> Vit:
        cfg = self.cfg if feature is None else dataclasses.replace(self.cfg, feature_layers=(feature,))
        settings = {"fraction": self.fraction, "rescale": "row", "across_items": True, **prune}
        return Vit(cfg, PruneConfig(**settings).check())

    def apply(self, model: Vit, params=None):
        capacity = self.capacity if model.prune.removed != "0" else self.rows.item.size * self.grid.cells
        return model.apply({"params": self.params if params is None else params}, self.patches, self.rows, capacity)

    def hidden(self, out) -> jax.Array:
        """[T, N, D], zeros in dropped positions."""
        return self.grid.to_patches(unpack_cells(out.features, out.kept))[0]

    def loss(self, params, model: Vit) -> tuple[jax.Array, VitOutput]:
        out = self.apply(model, params)
        cotangent = self.data["in/cotangent_times_4"].astype(np.float32) / 4
        patches = (self.grid.slots >= 0).sum(axis=-1)
        total, count = temporal_loss(out.logits, out.scored, self.rows, across_items=True)
        task = jnp.sum(self.hidden(out) * cotangent) / jnp.sum(out.kept.mask * patches)
        return task + 0.5 * total / jnp.maximum(count, 1), out


def compare(path: str) -> Iterator[Row]:
    """One row a quantity: forward values, both packings, the reference's refill, the loss and every stored gradient."""
    gold = Golden(path)
    want = {k[4:]: gold.data[k] for k in gold.data.files if k.startswith("out/")}
    run = jax.jit(jax.value_and_grad(gold.loss, has_aux=True), static_argnums=1)
    runs = {packing: run(gold.params, gold.model(packing=packing)) for packing in ("staircase", "bins")}
    (_, out), _ = runs["staircase"]

    def error(name: str, got) -> Row:
        assert np.shape(got) == want[name].shape, f"{name} has shape {np.shape(got)}, stored is {want[name].shape}"
        return Row(name, float(np.max(np.abs(np.asarray(got) - want[name]), initial=0)), VALUES)

    yield Row("keep_cells (cells that differ)", float(np.sum(np.asarray(out.kept.mask[0]) != want["keep_cells"])), 0)
    yield error("scores", jax.nn.sigmoid(out.logits[0]))
    bias = soft_bias(out.logits, gold.rows, gold.grid, "row")
    bias = jnp.repeat(bias[..., None], gold.grid.window, axis=-1)[..., None]
    yield error("attention_bias", gold.grid.to_patches(bias)[0, ..., 0])
    yield error("neighbour_cosine", neighbour_cosine(out.scored)[0])
    total, count = temporal_loss(out.logits, out.scored, gold.rows, across_items=True)
    yield error("aux_loss", total / jnp.maximum(count, 1))
    after = gold.cfg.prune_after
    if f"hidden_{after}" in want:
        yield error(f"hidden_{after}", gold.grid.to_patches(out.scored)[0])
    if f"hidden_{after + 1}" in want:
        soft = gold.model(feature=after + 1, method="soft_only")
        yield error(f"hidden_{after + 1}", gold.hidden(jax.jit(lambda params: gold.apply(soft, params))(gold.params)))

    refill = gold.model(packing="bins", refill=True)
    yield error("hidden_last_reference", gold.hidden(jax.jit(lambda params: gold.apply(refill, params))(gold.params)))
    for packing, ((loss, packed), grads) in runs.items():
        last = error("hidden_last_no_refill", gold.hidden(packed))
        yield dataclasses.replace(last, name=f"hidden_last_no_refill, {packing}")
        yield dataclasses.replace(error("loss", loss), name=f"loss, {packing}")
        yield from _gradients(gold, to_reference(grads, gold.cfg), packing)


def _gradients(gold: Golden, got: dict[str, np.ndarray], packing: str) -> Iterator[Row]:
    """Each leaf against the larger of its own largest value and 1e-3 of the largest of all.

    The pooler's key bias has no gradient in exact arithmetic (softmax does not see a shift), so the stored one is
    noise.
    """
    want = {k[5:]: gold.data[k] for k in gold.data.files if k.startswith("grad/")}
    largest = max(np.abs(g).max() for g in want.values())
    for name, value in want.items():
        scale = max(np.abs(value).max(), 1e-3 * largest)
        yield Row(f"grad {name}, {packing}", float(np.max(np.abs(got[name] - value)) / scale), GRADIENTS)


def main(paths: list[str]) -> int:
    if not paths:
        print("usage: python -m tests.golden.compare FILE.npz [FILE.npz ...]", file=sys.stderr)
        return 2
    good = True
    for path in paths:
        with jax.default_matmul_precision("highest"):
            rows = list(compare(path))
        width = max(len(row.name) for row in rows)
        print(path)
        for row in rows:
            print(
                f"  {row.name:<{width}}  error {row.error:9.2e}  limit {row.limit:7.0e}  {'ok' if row.ok else 'FAILS'}"
            )
        good &= all(row.ok for row in rows)
    print("all hold" if good else "NOT EQUAL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
