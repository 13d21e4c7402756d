"""How tables and pages write methods and numbers."""

# Method of `pruning.config` -> its name.
METHOD_NAMES = {
    "none": "unpruned",
    "scorer": "STTS",
    "random": "random",
    "easy": "frame difference",
    "reference_tracking": "reference tracking",
    "soft_only": "soft bias only",
}


def percent(value: float) -> str:
    """0.5 -> '50 %'; one decimal where it says something."""
    text = f"{100 * value:.1f}".removesuffix(".0")
    return f"{text} %"


def seconds(value: float) -> str:
    """0.0123 -> '12.3 ms'; 1.234 -> '1.23 s'."""
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def number(value: float) -> str:
    """0.01234 -> '0.01234'; 1500 -> '1,500'; 15000 -> '15 k'; 2.5e6 -> '2.5 M': short enough beside an axis."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:,.4g} {letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
