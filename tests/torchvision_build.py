"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Package indexes have one torchvision a version, built for CUDA. Beside a CPU build of torch its compiled operators do
not load, and the import fails where it names them. transformers wants its resize, which is torch's own, so it is enough
that the names exist.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import Any

_kept: list[Any] = []  # a library's names live as long as it


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Acts once, when torchvision is about to be imported; finds nothing itself."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torchvision")
        if spec is not None and spec.origin is not None and _other_build(Path(spec.origin).parent / "version.py"):
            _declare()


def _other_build(version: Path) -> bool:
    import torch

    return torch.version.cuda is None and "+cu" in version.read_text()


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
