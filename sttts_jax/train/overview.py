"""What a run trains, in a few lines: parameters by part of the model."""

from collections import defaultdict

from sttts_jax.text_table import text_table
from sttts_jax.train.optimizer import FROZEN
from sttts_jax.train.state import Blueprint
from sttts_jax.trees import named_leaves

MIB = 2**20


def parameter_overview(plan: Blueprint) -> str:
    """A table, one line a part and dtype: parameters, how many of them are trained, MiB over all devices together."""
    labels = named_leaves(plan.optimizer.labels)
    parts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, leaf in named_leaves(plan.abstract.params).items():
        trained = 0 if labels[name] == FROZEN else leaf.size
        counts = leaf.size, trained, leaf.size * leaf.dtype.itemsize
        for key in ((_part(name), str(leaf.dtype)), ("all", "")):
            parts[key] = [a + b for a, b in zip(parts[key], counts, strict=True)]
    parts[("all", "")] = parts.pop(("all", ""))  # last
    rows = [
        (part, dtype, f"{count:,}", f"{trained:,}", f"{count - trained:,}", f"{size / MIB:,.1f}")
        for (part, dtype), (count, trained, size) in parts.items()
    ]
    return text_table(("part", "dtype", "parameters", "trained", "frozen", "MiB"), rows)


def _part(name: str) -> str:
    part = "scorer" if name.startswith("vit/scorer/") else name.split("/")[0]
    return f"{part} LoRA" if "_lora_" in name else part
