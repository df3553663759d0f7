"""The command itself. What `bench` and `demo` do is tested in benchmarks/tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import wsfast
from wsfast import cli, doctor
from wsfast.cli import UnfitError, main


def test_import_is_light() -> None:
    """Who imports wsfast does not pay for the command line, nor for what that imports."""
    code = (
        "import sys, wsfast; print([name for name in "
        "('wsfast.cli', 'wsfast.doctor', 'wsfast_bench', 'picows', 'uvloop', 'argparse') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_module_is_the_command() -> None:
    """`python -m wsfast` is the command."""
    output = subprocess.check_output([sys.executable, "-m", "wsfast", "--version"], text=True)
    assert output.strip() == f"wsfast {wsfast.__version__}"


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has a line for each command, and loads none of them."""
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    output = capsys.readouterr().out
    assert all(f"\n    {name}" in output for name in cli.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["dokter"], ["doctor", "--clients", "0"], ["doctor", "--clients", "x"]])
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments are an error with status 2."""
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench", "demo"])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["--clients", "5"]])
def test_command_that_is_not_installed(
    name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without wsfast-bench, its commands say how to get it."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "wsfast_bench"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "scikit" not in repr(finder).lower()])
    assert main([name, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"wsfast {name}: this command needs wsfast-bench, which is not installed; ")
    assert captured.err.endswith('pip install "wsfast[bench]", or in a clone: pip install ./benchmarks\n')


def test_command_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an installed command does not find is not mistaken for the command."""
    monkeypatch.setitem(cli.COMMANDS, "bench", ("wsfast.no_such_module", ""))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["bench"])


def test_unfit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that cannot do what was asked for ends with its reason and status 1."""

    def fail(arguments: object) -> int:
        raise UnfitError("too small")

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "wsfast doctor: error: too small\n"


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends a command without a traceback."""

    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "\nwsfast doctor: interrupted\n"


def test_closed_pipe() -> None:
    """Whoever reads the output may stop to do so, without a traceback."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "wsfast", "doctor"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (1, "")
