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
