"""Sizes that kernels like: whole multiples of their blocks."""


def round_up(size: int, step: int) -> int:
    """The smallest multiple of `step` from `size` on."""
    return -(-size // step) * step
