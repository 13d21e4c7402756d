"""A loaded checkpoint: its weights, and the settings that they were trained with."""

import dataclasses
from collections.abc import Callable
from decimal import Decimal
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from sttts_jax.data.config import DataConfig
from sttts_jax.data.crops import evaluation_crops
from sttts_jax.data.sampling import RULES, FrameSampling
from sttts_jax.data.schema import RowShape
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.vit import Vit
from sttts_jax.models.vlm import Vlm
from sttts_jax.ops.attention.kernels import choose_kernels
from sttts_jax.pruning.budget import as_fraction
from sttts_jax.pruning.config import METHODS, REMOVING_NOTHING, WITH_SCORER, PruneConfig
from sttts_jax.train.kinds import check_kinds


def all_devices() -> jax.sharding.Mesh:
    """Rows and parameters over all devices, whatever mesh the checkpoint was trained on."""
    return make_mesh({"data": -1, "fsdp": -1})


def canonical_fraction(value: str | float) -> str:
    """'0.50' -> '0.5': one spelling for each share of cells to remove. Raises ValueError unless it is in [0, 1)."""
    text = str(value)
    as_fraction(text)
    return format(abs(Decimal(text)).normalize(), "f")  # -0 is 0


@dataclasses.dataclass(frozen=True)
class Setting:
    """At what the model is asked, maybe other than in training: the share of cells to remove, the sampling of frames,
    and the most tiles of an image, 0 for the whole picture alone.
    """

    fraction: str
    max_frames: int
    max_fps: float | None
    max_crops: int = 0
    sampling: str = RULES[0]

    def __post_init__(self) -> None:
        FrameSampling(self.max_frames, self.max_fps, self.sampling)  # raises for what cannot be
        check_kinds("", self)
        if self.max_crops < 0:
            raise ValueError(f"max_crops={self.max_crops} must not be negative; 0 is the whole picture alone")
        object.__setattr__(self, "fraction", canonical_fraction(self.fraction))


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint. Nothing touches a device before `params` or `mesh` is asked for.

    name        of the run, unique among those compared
    directory   of the run, as text
    config      of the run, as nested dicts
    load        mesh -> parameters on it
    content     reads the files of its weights and tokenizer for their digest
    place       what makes the mesh; asked once
    """

    name: str
    directory: str
    step: int
    config: dict[str, Any]
    vlm: VlmConfig
    pruning: PruneConfig
    data: DataConfig
    dtype: Any
    attention: str
    tokenizer: Tokenizer
    load: Callable[[jax.sharding.Mesh], Any]
    content: Callable[[], str]
    place: Callable[[], jax.sharding.Mesh] = all_devices

    @property
    def trained(self) -> Setting:
        """The setting of the training, with as many tiles of an image as evaluation takes."""
        crops = evaluation_crops(self.data.grid)
        return Setting(self.pruning.removed, self.data.max_frames, self.data.max_fps, crops, self.data.sampling)

    def with_method(self, method: str) -> "Checkpoint":
        """The same weights pruned by another method of `pruning.config`, at the share of the run's config.

        Raises ValueError for an unknown one, and for one with a scorer where there is none.
        """
        known = [name for name in METHODS if self.pruning.has_scorer or name not in WITH_SCORER]
        if method in METHODS and method not in known:
            raise ValueError(
                f"{self.directory}: has no scorer, so it cannot prune by method {method!r}; choose one of "
                f"{', '.join(known)}, or train a scorer"
            )
        fractions = self.pruning.fractions if method not in REMOVING_NOTHING else ()
        pruning = dataclasses.replace(self.pruning, method=method, fractions=fractions)
        return dataclasses.replace(self, pruning=pruning.check())

    def setting(
        self,
        fraction: str | float | None = None,
        max_frames: int | None = None,
        max_fps: float | None = None,
        max_crops: int | None = None,
        sampling: str | None = None,
    ) -> Setting:
        """The trained setting with changes. A method that drops nothing stays at fraction 0. Raises ValueError."""
        usual = self.trained
        wanted = usual.fraction if fraction is None else canonical_fraction(fraction)
        return Setting(
            wanted if self.pruning.removes else usual.fraction,
            usual.max_frames if max_frames is None else max_frames,
            usual.max_fps if max_fps is None else max_fps,
            usual.max_crops if max_crops is None else max_crops,
            usual.sampling if sampling is None else sampling,
        )

    def exact_setting(self, fraction: str | float | None = None, *others: Any) -> Setting:
        """As `setting`. Raises ValueError as well where a fraction is asked of a method that drops nothing."""
        setting = self.setting(fraction, *others)
        if fraction is not None and canonical_fraction(fraction) != setting.fraction:
            raise ValueError(
                f"the checkpoint's pruning method {self.pruning.method!r} removes nothing, so a fraction of "
                f"{fraction} cannot be had; leave it out, or choose another method, such as 'easy'"
            )
        return setting

    def frame_sampling(self, setting: Setting) -> FrameSampling:
        """How frames are chosen at a setting."""
        return FrameSampling(setting.max_frames, setting.max_fps, setting.sampling)

    def pruned(self, fraction: str) -> PruneConfig:
        """The pruning at another fraction."""
        return dataclasses.replace(self.pruning, fraction=fraction)

    def model(self, shape: RowShape) -> Vlm:
        """The model of a bucket."""
        prune = self.pruned(shape.fraction)
        return Vlm(self.vlm, prune, shape.kept, shape.length, self.dtype, "none", self._kernels)

    def vit(self, fraction: str) -> Vit:
        """The vision part of the model at another fraction; its parameters are `params["vit"]`."""
        return Vit(self.vlm.vit, self.pruned(fraction), self.dtype, "none", self._kernels, self.vlm.lora)

    @property
    def _kernels(self) -> str:
        return choose_kernels(self.attention, self.mesh.devices.flat[0].platform, self.dtype, self.vlm.vit.patches)

    @cached_property
    def digest(self) -> str:
        """Of its weights and its tokenizer, whatever they are called: read on first use."""
        return self.content()

    def identity(self, setting: Setting) -> dict[str, Any]:
        """All that an answer depends on but the question and what generates it, as plain JSON."""
        return {
            "weights": self.digest,
            "step": self.step,  # which random choices depend on
            "model": dataclasses.asdict(self.vlm),
            "pruning": dataclasses.asdict(self.pruned(setting.fraction)),
            "compute": [jnp.dtype(self.dtype).name, self.attention],
            "frames": dataclasses.asdict(self.frame_sampling(setting)),
            "setting": dataclasses.asdict(setting),
        }

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """Where everything runs."""
        return self.place()

    @cached_property
    def layout(self) -> DataLayout:
        """Which rows of a batch are this process's."""
        return DataLayout(self.mesh)

    @cached_property
    def params(self) -> Any:
        """Loaded on first use."""
        return self.load(self.mesh)

    def release(self) -> None:
        """Lets go of the parameters; they are loaded again when they are needed."""
        self.__dict__.pop("params", None)

    def key(self, seed: int) -> jax.Array:
        """What methods that choose at random start from."""
        return jax.random.fold_in(jax.random.key(seed), jnp.int32(self.step))
