"""The order of the layers, read from the imports of every module, and the size of every function.

    leaves < devices < ops < pruning < models | data < ckpt < train < convert | infer | plan < evals < report < api
    < bench < cli

A module imports its own part of the package and the layers before it. Models and data do not see each other, nor do
convert, infer and plan. Imports inside of functions count as well: that is where cycles hide.
"""

import ast
import statistics
import subprocess
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "sttts_jax"

DEVICES = {"compile_cache", "compiler_flags", "distributed", "mesh", "processes", "sharding", "topology"}
# Each layer: parts that may stand side by side, none seeing another of its row.
LAYERS: list[set[str]] = [
    {"chips", "dims", "exit_codes", "text_table", "paths"},
    {"trees"},
    DEVICES,
    {"ops"},
    {"pruning"},
    {"models", "data"},
    {"ckpt"},
    {"train"},
    {"convert", "infer", "plan"},
    {"evals"},
    {"report"},
    {"api"},
    {"bench"},
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# Parts that see less than their place allows.
ONLY = {
    "pruning": {"pruning", "ops", "dims"},  # usable with any Flax ViT: no model, no data, no training
    "data": {"data", "dims", "trees", "paths", "pruning"},  # workers import it: numpy only
}
DEVICE_MODULE = f"{PACKAGE}.data.device"
HOST_MODULE = f"{PACKAGE}.pruning.budget"  # the pure integers that the data layer shares with the model

ON_DEVICE = {"jax", "jaxlib", "flax", "optax", "orbax"}
TEST_ONLY = {"torch", "transformers", "tensorflow", "pytest", "hypothesis"}
TORCH_MODULE = f"{PACKAGE}.bench.torch_reference"  # what `bench torch` times: imported late, an extra of its own
CATCH_ALL = {"utils", "util", "helpers", "misc", "common"}

MAX_FUNCTION_LINES = 60
MAX_NESTING = 2  # of for, while, if, with and try inside of each other, in a function of the package
MANY_LINES = 400  # of a file: a warning
MAX_MEDIAN = 150
TEXT_SUFFIXES = {".py", ".sh", ".html", ".css", ".js", ".yaml", ".yml", ".toml"}


def _tracked(*folders: str) -> list[Path]:
    """Files below `folders` that git tracks or would: generated and ignored files are not held to the rules."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        paths = [ROOT / line for line in listing]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive: no git
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return sorted(path for path in set(paths) if path.is_file() and "__pycache__" not in path.parts)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in _tracked(PACKAGE) if path.suffix == ".py"}


def _resolve(name: str) -> str:
    """The module that `name` lives in: `sttts_jax.dims.EMBED` is sttts_jax.dims."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@cache
def _imports(module: str) -> frozenset[str]:
    """Full dotted names that a module imports, those of `from a import b` as a.b."""
    tree = ast.parse(MODULES[module].read_text(), filename=str(MODULES[module]))
    return frozenset(_names(tree, module))


def _names(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _inner(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    return {_resolve(name) for name in _imports(module) if name.split(".")[0] == PACKAGE} - {module, PACKAGE}


def _outer(module: str) -> set[str]:
    """Top-level names of other packages that a module imports."""
    return {name.split(".")[0] for name in _imports(module)} - {PACKAGE}


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _allowed(part: str) -> set[str]:
    below = {other for other, level in LEVEL.items() if level < LEVEL[part]} | {part}
    if part in DEVICES:
        below |= DEVICES  # one part in several files
    return below & ONLY.get(part, below)


def test_modules_were_found() -> None:
    assert {f"{PACKAGE}.dims", f"{PACKAGE}.cli.main"} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {PACKAGE}))
def test_module_has_a_layer_and_keeps_to_it(module: str) -> None:
    part = _part(module)
    assert part in LEVEL, f"{module} has no layer; give it one in LAYERS, or move it where it belongs"
    allowed = _allowed(part) | (DEVICES if module == DEVICE_MODULE else set())
    wrong = sorted(other for other in _inner(module) if _part(other) not in allowed)
    assert not wrong, f"{module} may import {sorted(allowed)} but imports {wrong}"


def test_the_package_root_imports_nothing() -> None:
    assert not _imports(PACKAGE)


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "import cycle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(_inner(module)):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


@pytest.mark.parametrize("module", sorted(name for name in MODULES if _part(name) == "data" and name != DEVICE_MODULE))
def test_data_workers_never_import_jax(module: str) -> None:
    seen, todo = set(), {module}
    while todo:
        current = todo.pop()
        seen.add(current)
        found = sorted(_outer(current) & ON_DEVICE)
        assert not found, f"{module} reaches {current}, which imports {found}; only {DEVICE_MODULE} may"
        todo |= _inner(current) - seen
        heart = sorted(other for other in _inner(current) if _part(other) == "pruning" and other != HOST_MODULE)
        assert _part(current) == "pruning" or not heart, f"{current} imports {heart}; data shares only {HOST_MODULE}"


def test_test_only_packages_and_folders_stay_out() -> None:
    wrong = {module: sorted(_outer(module) & (TEST_ONLY | {"tests", "configs"})) for module in MODULES}
    assert wrong.pop(TORCH_MODULE) == ["torch", "transformers"]
    assert not {module: names for module, names in wrong.items() if names}


def test_nobody_imports_a_command() -> None:
    readers = [path for path in _tracked(PACKAGE, "configs") if path.suffix == ".py"]
    for path in readers:
        names = set(_names(ast.parse(path.read_text()), str(path)))
        if "cli" not in path.relative_to(ROOT).parts:
            assert not {name for name in names if name.startswith(f"{PACKAGE}.cli")}, path


def test_no_catch_all_modules() -> None:
    assert not [module for module in MODULES if module.rpartition(".")[2] in CATCH_ALL]


@cache
def _python() -> list[Path]:
    return [path for path in _tracked(PACKAGE, "configs", "tests", "launch") if path.suffix == ".py"]


def test_no_function_is_too_long() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in _python()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > len(MODULES)
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


def _nesting(node: ast.AST, depth: int = 0) -> int:
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        elif_of = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        block = isinstance(child, ast.For | ast.While | ast.If | ast.With | ast.Try) and not elif_of
        deepest = max(deepest, _nesting(child, depth + block))
    return deepest


def test_no_function_is_nested_deeply() -> None:
    code = "def f():\n for a in b:\n  if a:\n   with c: d\n  elif e: f\n  elif g: h"
    assert _nesting(ast.parse(code).body[0]) == 3
    deep = {
        f"{module}.{node.name}": _nesting(node)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _nesting(node) > MAX_NESTING
    }
    assert not deep


def test_long_files_are_named() -> None:
    """A long file is no mistake: functions have the cap, so that files are cut where concepts are."""
    files = [path for path in _tracked(PACKAGE, "configs", "tests", "launch") if path.suffix in TEXT_SUFFIXES]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    for name, lines in lengths.items():
        if lines > MANY_LINES:
            warnings.warn(f"{name} has {lines} lines: is it one concept?", stacklevel=1)


def test_median_file_is_short() -> None:
    lengths = [len(path.read_text().splitlines()) for path in MODULES.values()]
    assert statistics.median([lines for lines in lengths if lines >= 5]) <= MAX_MEDIAN


def test_no_signature_holds_the_environment() -> None:
    """`help`, docs and tracebacks print defaults; a process's environment has secrets."""
    held = [
        f"{path.relative_to(ROOT)}:{default.lineno}"
        for path in _python()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults))
        if "environ" in ast.unparse(default)
    ]
    assert not held
