"""What attention over packed rows asks of its inputs, at the front door and in every kernel."""

import jax

from sttts_jax.ops.attention.row_rule import RowRule

Planned = tuple[tuple[int, ...], tuple[int, ...]]  # (B, Sq) and (B, Sk), what a plan was made for


def check_rules(rule_q: RowRule, rule_k: RowRule) -> None:
    """Raises ValueError unless the rules are [B, Sq] and [B, Sk], every field of one shape, and not empty."""
    for name, rule in (("rule_q", rule_q), ("rule_k", rule_k)):
        if rule.order.ndim != 2 or any(field.shape != rule.order.shape for field in rule):
            raise ValueError(f"Every field of {name} must have one shape [B, S]; got {[x.shape for x in rule]}.")
    shapes = rule_q.order.shape, rule_k.order.shape
    if shapes[0][0] != shapes[1][0] or 0 in (*shapes[0], *shapes[1]):
        raise ValueError(f"The rules are {shapes[0]} and {shapes[1]}; they must have the same rows, and tokens.")


def check_heads(q: jax.Array, k: jax.Array, v: jax.Array, planned: Planned) -> None:
    """Raises ValueError unless q [B, Sq, H, d] and k, v [B, Sk, Hkv, d] are of the `planned` rows."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "Row attention wants q [B, S, H, d] and k, v [B, S2, Hkv, d] with Hkv dividing H; "
            f"got {q.shape}, {k.shape}, {v.shape}."
        )
    if (q.shape[:2], k.shape[:2]) != planned:
        raise ValueError(f"The plan was made for rows {planned[0]} and {planned[1]}, not for {q.shape} and {k.shape}.")
