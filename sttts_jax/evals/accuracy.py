"""A share of right answers and how sure it is."""

from dataclasses import dataclass

Z95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its interval, all from 0 to 1, over `count` questions."""

    value: float
    low: float
    high: float
    count: int


def wilson(right: int, count: int) -> Accuracy:
    """A share with its 95 % Wilson score interval, which stays sensible near 0, near 1 and for few questions."""
    if not 0 <= right <= count:
        raise ValueError(f"{right} of {count} cannot be right; counts must be 0 <= right <= count")
    if count == 0:
        return Accuracy(0.0, 0.0, 1.0, 0)
    share, spread = right / count, Z95 * Z95 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * ((share * (1 - share) + spread / 4) / count) ** 0.5 / (1 + spread)
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past the share.
    return Accuracy(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share), count)
