"""AdamW in groups: each with its own rate, warm-up, decay and clip; every parameter is claimed by exactly one group.

Follows Molmo2's optimiser: betas (0.9, 0.95), eps 1e-6, gradients clipped to L2 norm 1 per group, cosine to 10 %
after a linear warm-up. Weights and moments are float32; frozen leaves have no moments. The learning rate follows the
`step` that the caller gives, not a counter in here, so a skipped step leaves the whole optimizer state alone and the
schedule still on time.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sttts_jax.trees import label_leaves, leaf_names, map_named

FROZEN = "frozen"

# Who trains what in the VLM of sttts_jax.models; the rows of the new tokens learn with the connector, as in Molmo2.
VLM_LABELS = (
    (r"vit/scorer/.*", "scorer"),
    (r"vit/.*", "vit"),
    (r"connector/.*|llm/new_embedding", "connector"),
    (r"llm/.*", "llm"),
)


@dataclass(frozen=True)
class GroupConfig:
    """One group. clip_norm 0 means no clipping; warmup in steps; weight_decay is decoupled, times the learning rate."""

    peak_lr: float
    warmup: int = 200
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass(frozen=True)
class OptimizerConfig:
    """All groups. `labels`: (regex, group) pairs on whole leaf names, first match wins, every leaf must match.

    `frozen`: regexes tried before the labels. `no_decay`: leaves that weight decay never touches.
    """

    total_steps: int
    groups: Mapping[str, GroupConfig]
    labels: tuple[tuple[str, str], ...]
    frozen: tuple[str, ...] = ()
    no_decay: tuple[str, ...] = (r"(.*/)?([^/]*_)?(bias|scale|gain)", r"(.*/)?[^/]*norm[^/]*(/.*)?")
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    final_fraction: float = 0.1

    def check(self) -> None:
        """Raises ValueError on numbers out of range and on labels without a group."""
        if self.total_steps < 1:
            raise ValueError(f"optimizer.total_steps={self.total_steps} must be at least 1")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"optimizer.final_fraction={self.final_fraction} must lie in 0..1")
        unknown = sorted({label for _, label in self.labels} - set(self.groups) - {FROZEN})
        if unknown:
            raise ValueError(f"labels name the groups {unknown}, which do not exist; groups are {sorted(self.groups)}")
        for name, group in self.groups.items():
            if group.peak_lr < 0 or group.weight_decay < 0 or group.clip_norm < 0 or group.warmup < 0:
                raise ValueError(f"optimizer group {name} has a negative number: {group}")
            if group.warmup >= self.total_steps and group.warmup > 0:
                raise ValueError(
                    f"optimizer group {name}: warmup={group.warmup} does not end before "
                    f"total_steps={self.total_steps}; shorten it"
                )


def without_group(config: OptimizerConfig, name: str) -> OptimizerConfig:
    """The config less one group and its labels: for a model that lacks the part, such as one without a scorer."""
    groups = {key: group for key, group in config.groups.items() if key != name}
    return replace(config, groups=groups, labels=tuple(pair for pair in config.labels if pair[1] != name))


def schedule(group: GroupConfig, total_steps: int, final_fraction: float, step: Any) -> Any:
    """The learning rate of update number `step`, which starts at 1 (int: float on the host; traced: float32).

    peak * step / warmup while step < warmup; then, with final = final_fraction * peak,
    final + (peak - final)(1 + cos(pi (step - warmup) / (total_steps - warmup))) / 2; final from total_steps on.
    """
    traced = isinstance(step, jax.Array)
    cos, minimum = (jnp.cos, jnp.minimum) if traced else (math.cos, min)
    share = minimum((step - group.warmup) / max(total_steps - group.warmup, 1), 1.0)
    final = final_fraction * group.peak_lr
    rising = group.peak_lr * step / max(group.warmup, 1)
    falling = final + (group.peak_lr - final) * (1 + cos(math.pi * share)) / 2
    if traced:
        return jnp.where(step < group.warmup, rising, falling)
    return rising if step < group.warmup else falling


def learning_rates(config: OptimizerConfig, step: int) -> dict[str, float]:
    """{group: learning rate of update `step`}, computed on the host for the log."""
    total, final = config.total_steps, config.final_fraction
    return {name: schedule(group, total, final, int(step)) for name, group in config.groups.items()}


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales by min(1, limit / (norm + 1e-6)), the norm over all leaves it sees (PyTorch's rule; Optax has no 1e-6)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        coefficient = jnp.minimum(1.0, limit / (_norm(jax.tree.leaves(updates)) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * coefficient, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _norm(leaves: Sequence[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves), jnp.float32(0)))


def _scale_by_rate(config: OptimizerConfig, group: GroupConfig) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, *, step: jax.Array, **_: Any) -> tuple[Any, Any]:
        del params
        rate = schedule(group, config.total_steps, config.final_fraction, step)
        return jax.tree.map(lambda leaf: -rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _group_transform(config: OptimizerConfig, group: GroupConfig, decay_mask: Any) -> optax.GradientTransformation:
    parts = [clip_by_norm(group.clip_norm)] if group.clip_norm else []
    parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.eps))
    if group.weight_decay:
        parts.append(optax.add_decayed_weights(group.weight_decay, mask=decay_mask))
    return optax.chain(*parts, _scale_by_rate(config, group))


@dataclass(frozen=True)
class Optimizer:
    """What `make_optimizer` returns. `labels`: a tree of group names with the structure of the parameters."""

    config: OptimizerConfig
    labels: Any
    transform: optax.GradientTransformationExtraArgs

    def init(self, params: Any) -> optax.OptState:
        """Zero moments for every leaf that is not frozen (works on boxed, abstract-evaluated and real parameters)."""
        return self.transform.init(params)

    def update(self, grads: Any, state: Any, params: Any, step: jax.Array) -> tuple[Any, Any]:
        """(new params, new state) of update number `step` (int32, starts at 1)."""
        updates, state = self.transform.update(grads, state, params, step=jnp.asarray(step))
        return optax.apply_updates(params, updates), state

    def norms(self, grads: Any) -> dict[str, jax.Array]:
        """{group: L2 norm of its gradients before the clip}, float32; frozen leaves are not looked at."""
        return group_norms(grads, self.labels)


def make_optimizer(config: OptimizerConfig, params: Any) -> Optimizer:
    """Builds the optimizer for a parameter tree, real or abstract, unboxed.

    Raises ValueError on an unclaimed leaf, an idle rule, a group that no leaf belongs to, or a trained leaf that is
    not float32.
    """
    config.check()
    labels = label_leaves(params, (*[(pattern, FROZEN) for pattern in config.frozen], *config.labels))
    used = set(jax.tree.leaves(labels))
    empty = sorted(set(config.groups) - used)
    if empty:
        raise ValueError(f"the optimizer groups {empty} have no parameters; remove them or correct the labels")
    wrong = [
        f"{name} ({leaf.dtype})"
        for name, leaf, label in zip(leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
        if label != FROZEN and leaf.dtype != jnp.float32
    ]
    if wrong:
        raise ValueError(
            f"trained parameters must be float32 master weights, but these are not: {', '.join(wrong[:8])}"
        )
    decays = _decay_mask(params, config.no_decay)
    transforms: dict[str, Any] = {
        name: _group_transform(config, group, decays) for name, group in config.groups.items()
    }
    if FROZEN in used:
        transforms[FROZEN] = optax.set_to_zero()
    return Optimizer(config, labels, optax.partition(transforms, labels))


def _decay_mask(params: Any, no_decay: tuple[str, ...]) -> Any:
    patterns = [re.compile(pattern) for pattern in no_decay]
    return map_named(lambda name, _: not any(pattern.fullmatch(name) for pattern in patterns), params)


def group_norms(grads: Any, labels: Any) -> dict[str, jax.Array]:
    """{group: L2 norm}, float32, over the leaves that carry its label."""
    groups: dict[str, list[jax.Array]] = {}
    for leaf, label in zip(jax.tree.leaves(grads), jax.tree.leaves(labels), strict=True):
        if label != FROZEN:
            groups.setdefault(label, []).append(leaf)
    return {label: _norm(leaves) for label, leaves in sorted(groups.items())}


def all_finite(loss: jax.Array, norms: Mapping[str, jax.Array]) -> jax.Array:
    """Whether the loss and every group's gradient norm are finite: bool scalar."""
    return jnp.isfinite(loss) & jnp.all(jnp.isfinite(jnp.stack(list(norms.values()))))


def guarded_update(
    optimizer: Optimizer, grads: Any, state: Any, params: Any, step: jax.Array, finite: jax.Array
) -> tuple[Any, Any]:
    """`optimizer.update`; where `finite` (bool scalar) is false, params and state stay as they are, bit for bit."""
    new_params, new_state = optimizer.update(grads, state, params, step)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), (new_params, new_state), (params, state))
