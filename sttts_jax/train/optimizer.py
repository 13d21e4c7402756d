"""AdamW in groups: each with its own rate, warm-up, decay and clip; every parameter is claimed by exactly one group.

Follows Molmo2's optimiser: betas (0.9, 0.95), eps 1e-6, gradients clipped to L2 norm 1 per group, cosine to 10 %
after a linear warm-up. Weights and moments are float32. Frozen leaves have no moments, and what `Optimizer.trained`
gives to differentiate leaves them out, so their gradients never exist either. The learning rate follows the `step` that
the caller gives, not a counter in here, so a skipped step leaves the whole optimizer state alone and the schedule still
on time.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sttts_jax.trees import label_leaves, leaf_names, map_named, named_leaves

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

    `frozen`: regexes tried before the labels. `train_only`: if given, leaves that none of these regexes matches are
    frozen too. `no_decay`: leaves that weight decay never touches.
    """

    total_steps: int
    groups: Mapping[str, GroupConfig]
    labels: tuple[tuple[str, str], ...]
    frozen: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()
    no_decay: tuple[str, ...] = (r"(.*/)?([^/]*_)?(bias|scale|gain)", r"(.*/)?[^/]*norm[^/]*(/.*)?")
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    final_fraction: float = 0.1

    def check(self) -> None:
        """Raises ValueError on numbers out of range, on what is no regex, on labels and groups without each other."""
        if self.total_steps < 1:
            raise ValueError(f"optimizer.total_steps={self.total_steps} must be at least 1")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"optimizer.final_fraction={self.final_fraction} must lie in 0..1")
        unknown = sorted({label for _, label in self.labels} - set(self.groups) - {FROZEN})
        if unknown:
            raise ValueError(f"labels name the groups {unknown}, which do not exist; groups are {sorted(self.groups)}")
        idle = sorted(set(self.groups) - {label for _, label in self.labels})
        if idle:
            raise ValueError(f"the optimizer groups {idle} have no parameters; remove them or correct the labels")
        for pattern in (*self.frozen, *self.train_only):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"optimizer: {pattern!r} is no regular expression ({error})") from None
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
    """What `make_optimizer` returns.

    config      its groups are those that have parameters to train
    labels      a tree of group names, or FROZEN, with the structure of the parameters
    """

    config: OptimizerConfig
    labels: Any
    transform: optax.GradientTransformationExtraArgs

    def trained(self, tree: Any) -> Any:
        """A tree like the parameters with nothing (no leaf) in the place of frozen leaves: what to differentiate by."""
        return _trained(self.labels, tree)

    def joined(self, trained: Any, params: Any) -> Any:
        """Whole parameters: `trained` as `trained()` gives it, the frozen leaves from `params`."""
        return jax.tree.map(lambda label, new, old: old if label == FROZEN else new, self.labels, trained, params)

    def init(self, params: Any) -> optax.OptState:
        """Zero moments for every leaf that is not frozen (works on boxed, abstract-evaluated and real parameters)."""
        return self.transform.init(self.trained(params))

    def update(self, grads: Any, state: Any, params: Any, step: jax.Array) -> tuple[Any, Any]:
        """(new params, new state) of update number `step` (int32, starts at 1). `grads`: of `trained(params)`, or of
        all parameters."""
        trained = self.trained(params)
        updates, state = self.transform.update(self.trained(grads), state, trained, step=jnp.asarray(step))
        return self.joined(optax.apply_updates(trained, updates), params), state

    def norms(self, grads: Any) -> dict[str, jax.Array]:
        """{group: L2 norm of its gradients before the clip}, float32; frozen leaves are not looked at."""
        return group_norms(self.trained(grads), self.trained(self.labels))


def _trained(labels: Any, tree: Any) -> Any:
    return jax.tree.map(lambda label, part: optax.MaskedNode() if label == FROZEN else part, labels, tree)


def make_optimizer(config: OptimizerConfig, params: Any) -> Optimizer:
    """Builds the optimizer for a parameter tree, real or abstract, unboxed. Groups whose leaves are all frozen are
    dropped.

    Raises ValueError on an unclaimed leaf, an idle rule, a group that no label names, a trained leaf that is not
    float32, or when everything is frozen.
    """
    config.check()
    labels = _labels(config, params)
    used = set(jax.tree.leaves(labels)) - {FROZEN}
    if not used:
        raise ValueError("optimizer.frozen and optimizer.train_only leave no parameter to train; shorten or mend them")
    config = replace(config, groups={name: group for name, group in config.groups.items() if name in used})
    wrong = [
        f"{name} ({leaf.dtype})"
        for name, leaf in named_leaves(_trained(labels, params)).items()
        if leaf.dtype != jnp.float32
    ]
    if wrong:
        raise ValueError(
            f"trained parameters must be float32 master weights, but these are not: {', '.join(wrong[:8])}"
        )
    decays = _decay_mask(params, config.no_decay)
    transforms = {name: _group_transform(config, group, decays) for name, group in config.groups.items()}
    return Optimizer(config, labels, optax.partition(transforms, _trained(labels, labels)))


def _labels(config: OptimizerConfig, params: Any) -> Any:
    """The group of every leaf, or FROZEN."""
    labels = label_leaves(params, (*[(pattern, FROZEN) for pattern in config.frozen], *config.labels))
    if not config.train_only:
        return labels
    patterns = [re.compile(pattern) for pattern in config.train_only]
    names = leaf_names(params)
    idle = [regex.pattern for regex in patterns if not any(regex.fullmatch(name) for name in names)]
    if idle:
        raise ValueError(
            f"optimizer.train_only: {', '.join(map(repr, idle))} matches no parameter; correct or remove it"
        )
    return map_named(lambda name, label: label if any(p.fullmatch(name) for p in patterns) else FROZEN, labels)


def _decay_mask(params: Any, no_decay: tuple[str, ...]) -> Any:
    patterns = [re.compile(pattern) for pattern in no_decay]
    return map_named(lambda name, _: not any(pattern.fullmatch(name) for pattern in patterns), params)


def group_norms(grads: Any, labels: Any) -> dict[str, jax.Array]:
    """{group: L2 norm}, float32, over the leaves that carry its label."""
    groups: dict[str, list[jax.Array]] = {}
    for leaf, label in zip(jax.tree.leaves(grads), jax.tree.leaves(labels), strict=True):
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

    def keep(new: Any, old: Any) -> Any:
        return old if new is old else jnp.where(finite, new, old)

    return jax.tree.map(keep, (new_params, new_state), (params, state))
