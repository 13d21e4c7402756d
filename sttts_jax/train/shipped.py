"""The config files that come with the package, found by name: beside it in a checkout, inside of it where it is
installed.
"""

import difflib
from pathlib import Path

import sttts_jax


def shipped_configs() -> dict[str, Path]:
    """{name: file}, such as "demo"."""
    package = Path(sttts_jax.__file__).parent
    inside, beside = package / "configs", package.parent / "configs"
    folder = beside if not inside.is_dir() and (package.parent / "pyproject.toml").is_file() else inside
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def config_file(name: str) -> Path:
    """The file that `name` means: a path that exists, or the name of a shipped one. Raises ValueError for another."""
    path, known = Path(name).expanduser(), shipped_configs()
    if path.is_file():
        return path
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}" if near else f"by name there are {', '.join(known)}"
    raise ValueError(f"--config {name}: there is no such file; {hint}, or give the path of a file with get_config()")
