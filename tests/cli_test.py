"""The dispatcher: what it lists, how it fails, and that it imports nothing it need not."""

import errno
import os
import pkgutil
import subprocess
import sys
import types

import ml_collections
import pytest

from sttts_jax import cli
from sttts_jax.cli import main as dispatcher
from sttts_jax.cli import train
from sttts_jax.train.keys import sections


def _process(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env={**os.environ, **env}, timeout=120
    )


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, line in dispatcher.COMMANDS.items():
        assert f"{name} " in text and line in text


def test_the_table_has_every_command_file_and_no_other() -> None:
    names = {module.name for module in pkgutil.iter_modules(cli.__path__) if not module.name.startswith("_")}
    assert names - {"main", "arguments", "settings", "several"} == set(dispatcher.COMMANDS)


def test_help_of_train_shows_the_configs_own_arguments_and_every_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert dispatcher.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: sttts-jax train --config NAME|FILE[:ARGUMENTS] --workdir DIR") and "demo" in text
    told = " ".join(text.split())
    for name, _, found in sections():
        for key in found:
            assert f"--config.{name}{'.' if name else ''}{key.name}=" in text and key.meaning in told
    assert dispatcher.main(["train", "--config", "demo:steps=5", "--help"]) == 0
    assert "Arguments: method (scorer, random," in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(None, 0), (KeyboardInterrupt, 130)])
def test_a_compiler_that_cannot_be_ended_ends_with_the_process(
    error: type[BaseException] | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was told to stop while it compiled; the interpreter's own end would abort."""

    def trained(*_: object) -> types.SimpleNamespace:
        if error is not None:
            raise error
        return types.SimpleNamespace(step=3)

    ends: list[int] = []
    config = ml_collections.ConfigDict({"total_steps": 3, "distributed": {}})
    monkeypatch.setattr(train, "_parse", lambda argv: (config, "x"))
    monkeypatch.setattr(train, "api", types.SimpleNamespace(train=trained))
    monkeypatch.setattr(train, "signals", types.SimpleNamespace(left_behind=lambda: True))
    monkeypatch.setattr(train.os, "_exit", ends.append)
    assert dispatcher.run("train", train.main, []) == code and ends == [code]


def test_no_command_is_a_mistake_and_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main([]) == 2
    assert "usage: sttts-jax COMMAND" in capsys.readouterr().err


def test_misspelt_command_names_the_near_one(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(dispatcher, "COMMANDS", {"train": "", "evaluate": ""})
    assert dispatcher.main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert dispatcher.main(["zzz"]) == 2
    assert "choose one of: train, evaluate" in capsys.readouterr().err


def test_module_and_console_entry_agree() -> None:
    package, module = _process("sttts_jax.cli", "--help"), _process("sttts_jax.cli.main", "--help")
    assert package.returncode == module.returncode == 0
    assert package.stdout == module.stdout != ""


def test_help_is_light() -> None:
    code = "import sys; from sttts_jax.cli import main; main.main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "flax", "numpy"} & set(loaded)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("--pruned_fraction is 1.5; give a value from 0 to 1"), "--pruned_fraction is 1.5; give a value"),
        (FileNotFoundError(2, "No such file or directory", "runs/x"), "runs/x: No such file or directory"),
        (ValueError(), "ValueError"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device; free some space"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: Read-only file system; choose another place"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space"),
        (MemoryError(), "memory runs out; ask for less at a time"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n.."),
            "memory runs out; ask",
        ),
    ],
)
def test_user_mistakes_are_one_sentence(error: Exception, expected: str, capsys) -> None:
    def command(argv: list[str]) -> int:
        raise error

    assert dispatcher.run("train", command, []) == 2
    assert capsys.readouterr().err.startswith(f"sttts-jax train: error: {expected}")


def test_errors_of_other_packages_say_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert dispatcher.run("inspect", lambda argv: json.loads("{"), []) == 2
    assert "raised by json.decoder; STTTS_DEBUG=1" in capsys.readouterr().err


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STTTS_DEBUG", "1")
    with pytest.raises(ValueError, match="invalid literal"):
        dispatcher.run("train", lambda argv: int(argv[0]), ["x"])


def test_bugs_are_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        dispatcher.run("train", lambda argv: 1 // 0, [])


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (3, 3)])
def test_exit_code_is_what_the_command_returns(value: int | None, code: int) -> None:
    assert dispatcher.run("train", lambda argv: value, []) == code


def test_other_failures_of_files_keep_their_traceback() -> None:
    def command(argv: list[str]) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(OSError, match="Bad file descriptor"):
        dispatcher.run("train", command, [])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sttts_jax.cli", "data", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "error: No space left on device; free some space, or choose another place" in done.stderr


def test_what_the_terminal_cannot_show_ends_no_command() -> None:
    code = "from sttts_jax.cli import main; main.run('x', lambda argv: print('caf\\udce9 \\u2028 \\u00e9'), [])"
    for encoding, shown in (
        ("utf-8", b"caf\\udce9 \xe2\x80\xa8 \xc3\xa9\n"),
        ("latin-1", b"caf\\udce9 \\u2028 \xe9\n"),
    ):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
        assert (done.returncode, done.stdout) == (0, shown), done.stderr


def test_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: list[str]) -> int:
        raise KeyboardInterrupt

    assert dispatcher.run("train", command, []) == 130
    assert capsys.readouterr().err == "sttts-jax train: interrupted\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/nope.py"], "--config configs/nope.py: there is no such file; by name there are demo"),
        (["configs/demo.py:methd=scorer"], "the config argument has no key 'methd'; did you mean 'method'"),
        (["configs/demo.py:k=1.2"], ": k=1.2 is out of range; give the share of cells to remove"),
        (["configs/demo.py", "--config.optimizer.llm_rl=1"], "the config has no key 'llm_rl'; Did you mean \"llm_lr\""),
        (["configs/demo.py", "--config.optimizer.llm_lr=x"], "could not convert string to float: 'x'"),
        (["configs/demo.py", "steps=3"], "unexpected argument 'steps=3'; settings are given as --config.KEY=VALUE"),
    ],
)
def test_a_mistake_in_the_config_is_one_sentence(words: list[str], message: str, capsys, tmp_path) -> None:
    assert dispatcher.main(["train", "--config", *words, "--workdir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
