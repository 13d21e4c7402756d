"""AdamW in groups: each with its own rate, warm-up, decay and clip; every parameter is claimed by exactly one group.

Follows Molmo2's optimiser: betas (0.9, 0.95), eps 1e-6, gradients clipped to L2 norm 1 per group, cosine to 10 %
after a linear warm-up. Weights and moments are float32. Frozen leaves have no moments, and what `Optimizer.trained`
gives to differentiate leaves them out, so their gradients never exist either. The learning rate follows the `step` that
the caller gives, not a counter in here, so a skipped step leaves the whole optimizer state alone and the schedule still
on time.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from sttts_jax.trees import label_leaves, leaf_names, map_named, named_leaves

FROZEN = "frozen"
_LEAST_EPS = 1e-30  # smaller ones let a bound of what an update may do leave float32

# Who trains what in the VLM of sttts_jax.models; the rows of the new tokens learn with the connector, as in Molmo2.
VLM_LABELS = (
    (r"vit/scorer/.*", "scorer"),
    (r"vit/.*", "vit"),
    (r"connector/.*|llm/new_embedding", "connector"),
    (r"llm/.*", "llm"),
)


# Leaves that weight decay never touches.
NO_DECAY = (r"(.*/)?([^/]*_)?(bias|scale|gain)", r"(.*/)?[^/]*norm[^/]*(/.*)?")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    llm_lr          peak learning rate of the language model
    vit_lr          of the ViT without the scorer
    connector_lr    of the connector, and of the embeddings of the added tokens
    scorer_lr       of the scorer
    warmup          steps of the linear rise to the peak; a cosine follows, down to the last step
    weight_decay    decoupled, times the learning rate; biases, scales and norms have none
    clip_norm       L2 norm to which a group's gradients are clipped, 0 for no clip
    beta1           decay of the first moment, from 0 to below 1
    beta2           decay of the second moment, from 0 to below 1
    eps             added to the root of the second moment
    final_fraction  share of the peak learning rate that the cosine ends at, 0..1
    frozen          regexes on whole names of parameters that are not trained
    train_only      if given, what none of these regexes matches is not trained either: ("vit/scorer/.*",) for the
                    scorer alone, (".*_lora_[ab]", "vit/scorer/.*") for it and LoRA
    """

    llm_lr: float = 1e-5
    vit_lr: float = 5e-6
    connector_lr: float = 5e-6
    scorer_lr: float = 1e-4
    warmup: int = 200
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    final_fraction: float = 0.1
    frozen: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()

    @property
    def rates(self) -> dict[str, float]:
        """{group: peak learning rate}."""
        return {"llm": self.llm_lr, "vit": self.vit_lr, "connector": self.connector_lr, "scorer": self.scorer_lr}

    def check(self) -> Self:
        """Itself. Raises ValueError on numbers out of range and on what is no regex."""
        for name in ("llm_lr", "vit_lr", "connector_lr", "scorer_lr", "warmup", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be from 0 to below 1")
        if not self.eps >= _LEAST_EPS:
            raise ValueError(
                f"optimizer.eps={self.eps} must be at least {_LEAST_EPS}, or a gradient of 0 is divided by 0"
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"optimizer.final_fraction={self.final_fraction} must lie in 0..1")
        for pattern in (*self.frozen, *self.train_only):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"optimizer: {pattern!r} is no regular expression ({error})") from None
        return self

    def check_steps(self, total_steps: int) -> None:
        """Raises ValueError where the run ends before the warm-up does."""
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps} must be at least 1")
        if 0 < self.warmup >= total_steps:
            raise ValueError(
                f"optimizer.warmup={self.warmup} does not end before total_steps={total_steps}; shorten it"
            )


def schedule(config: OptimizerConfig, peak: float, total_steps: int, step: Any) -> Any:
    """The learning rate of update number `step`, which starts at 1 (int: float on the host; traced: float32).

    peak * step / warmup while step < warmup; then, with final = final_fraction * peak,
    final + (peak - final)(1 + cos(pi (step - warmup) / (total_steps - warmup))) / 2; final from total_steps on.
    """
    traced, warmup = isinstance(step, jax.Array), config.warmup
    cos, minimum = (jnp.cos, jnp.minimum) if traced else (math.cos, min)
    share = minimum((step - warmup) / max(total_steps - warmup, 1), 1.0)
    final = config.final_fraction * peak
    rising = peak * step / max(warmup, 1)
    falling = final + (peak - final) * (1 + cos(math.pi * share)) / 2
    if traced:
        return jnp.where(step < warmup, rising, falling)
    return rising if step < warmup else falling


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales by min(1, limit / (norm + 1e-6)), the norm over all leaves it sees (PyTorch's rule; Optax has no 1e-6)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        coefficient = jnp.minimum(1.0, limit / (_norm(jax.tree.leaves(updates)) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * coefficient, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _norm(leaves: Sequence[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves), jnp.float32(0)))


def _scale_by_rate(config: OptimizerConfig, peak: float, total_steps: int) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, *, step: jax.Array, **_: Any) -> tuple[Any, Any]:
        del params
        rate = schedule(config, peak, total_steps, step)
        return jax.tree.map(lambda leaf: -rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _group_transform(
    config: OptimizerConfig, peak: float, total_steps: int, decay_mask: Any
) -> optax.GradientTransformation:
    parts = [clip_by_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.eps))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    return optax.chain(*parts, _scale_by_rate(config, peak, total_steps))


@dataclass(frozen=True)
class Optimizer:
    """What `make_optimizer` returns.

    groups      {name: peak learning rate} of those that have parameters to train
    labels      a tree of group names, or FROZEN, with the structure of the parameters
    """

    config: OptimizerConfig
    total_steps: int
    groups: Mapping[str, float]
    labels: Any
    transform: optax.GradientTransformationExtraArgs

    def rates(self, step: int) -> dict[str, float]:
        """{group: learning rate of update `step`}, computed on the host for the log."""
        return {name: schedule(self.config, peak, self.total_steps, step) for name, peak in self.groups.items()}

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


def make_optimizer(config: OptimizerConfig, total_steps: int, params: Any) -> Optimizer:
    """Builds the optimizer for a parameter tree, real or abstract, unboxed. Groups whose leaves are all frozen, or that
    the model lacks, are dropped.

    Raises ValueError on a leaf that no group claims, a regex of the config that matches nothing, a trained leaf that is
    not float32, or when everything is frozen.
    """
    config.check().check_steps(total_steps)
    labels = _labels(config, params)
    used = set(jax.tree.leaves(labels)) - {FROZEN}
    if not used:
        raise ValueError("optimizer.frozen and optimizer.train_only leave no parameter to train; shorten or mend them")
    groups = {name: peak for name, peak in config.rates.items() if name in used}
    wrong = [
        f"{name} ({leaf.dtype})"
        for name, leaf in named_leaves(_trained(labels, params)).items()
        if leaf.dtype != jnp.float32
    ]
    if wrong:
        raise ValueError(
            f"trained parameters must be float32 master weights, but these are not: {', '.join(wrong[:8])}"
        )
    decays = _decay_mask(params)
    transforms = {name: _group_transform(config, peak, total_steps, decays) for name, peak in groups.items()}
    return Optimizer(config, total_steps, groups, labels, optax.partition(transforms, _trained(labels, labels)))


def _labels(config: OptimizerConfig, params: Any) -> Any:
    """The group of every leaf, or FROZEN."""
    names = leaf_names(params)
    rules = [rule for rule in VLM_LABELS if any(re.fullmatch(rule[0], name) for name in names)]  # no scorer, no rule
    labels = label_leaves(params, (*[(pattern, FROZEN) for pattern in config.frozen], *rules))
    if not config.train_only:
        return labels
    patterns = [re.compile(pattern) for pattern in config.train_only]
    idle = [regex.pattern for regex in patterns if not any(regex.fullmatch(name) for name in names)]
    if idle:
        raise ValueError(
            f"optimizer.train_only: {', '.join(map(repr, idle))} matches no parameter; correct or remove it"
        )
    return map_named(lambda name, label: label if any(p.fullmatch(name) for p in patterns) else FROZEN, labels)


def _decay_mask(params: Any) -> Any:
    patterns = [re.compile(pattern) for pattern in NO_DECAY]
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
) -> tuple[Any, Any, jax.Array]:
    """(params, state, whether they are new): `optimizer.update`; where `finite` (bool scalar) is false, or a parameter
    might not be finite after it, params and state stay as they are, bit for bit.
    """
    finite &= jnp.isfinite(_bound(optimizer, grads, state, params))
    new_params, new_state = optimizer.update(grads, state, params, step)

    def keep(new: Any, old: Any) -> Any:
        return old if new is old else jnp.where(finite, new, old)

    return *jax.tree.map(keep, (new_params, new_state), (params, state)), finite


def _bound(optimizer: Optimizer, grads: Any, state: Any, params: Any) -> jax.Array:
    """What no parameter is larger than after an update, float32 []: not finite if a parameter or a moment is not.

    |p| (1 + rate decay) + rate (|m| + |g|) / ((1 - beta1) eps) with sums of all |p| and |m| for the largest. To look at
    the new parameters themselves, the update would have to be made twice, or kept beside the old ones: AdamW inside of
    a reduction takes a compiler twice as long as AdamW.
    """
    config, rate = optimizer.config, max(optimizer.groups.values())
    weights = _total(jnp.abs, jax.tree.leaves(optimizer.trained(params)))
    slopes = _total(jnp.abs, _moments(state, "mu")) + sum(optimizer.norms(grads).values(), jnp.float32(0))
    step = rate * slopes / ((1 - config.beta1) * config.eps)
    return weights * (1 + rate * config.weight_decay) + step + _total(jnp.sqrt, _moments(state, "nu"))


def _total(size: Callable[[jax.Array], jax.Array], leaves: Sequence[jax.Array]) -> jax.Array:
    """float32 []: a NaN of one is a NaN of all, as of a second moment below 0."""
    return sum((jnp.sum(size(leaf)) for leaf in leaves), jnp.float32(0))


def _moments(state: Any, name: str) -> list[jax.Array]:
    """The leaves of the first ("mu") or the second moments ("nu") of all groups."""
    return [leaf for _, part in optax.tree_utils.tree_get_all_with_path(state, name) for leaf in jax.tree.leaves(part)]
