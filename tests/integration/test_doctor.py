"""`wsfast doctor`: each line must be true, of systems that are made up and of installations that are broken."""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.metadata
import json
import os
import platform
import shutil
import site
import socket
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import wsfast
from helpers import processes
from wsfast._core import _pure, core
from wsfast.cli import main
from wsfast.doctor import EPILOG, limits, software
from wsfast.doctor.limits import Finding

linux = pytest.mark.skipif(sys.platform != "linux", reason="these limits are those of Linux")

SYSTEM = {
    "proc/sys/fs/file-nr": "1000\t0\t500000\n",
    "proc/sys/fs/nr_open": "1048576\n",
    "proc/sys/fs/epoll/max_user_watches": "400000\n",
    "proc/sys/net/core/somaxconn": "16384\n",
    "proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304\n",
    "proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456\n",
    "proc/sys/net/ipv4/tcp_mem": "100000\t200000\t300000\n",
    "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
    "proc/sys/net/ipv4/ip_local_reserved_ports": "\n",
    "proc/meminfo": "MemTotal:       16777216 kB\nMemFree:         9999999 kB\n",
    "proc/self/cgroup": "0::/\n",
}
"""Files of a system that is fine for 10,000 clients."""

Examine: TypeAlias = Callable[..., dict[str, Finding]]


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Judge a system with these files, and no others."""
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    monkeypatch.setattr(limits, "_open_files", lambda clients: ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)

    def examine(clients: int = 10_000, **files: str | None) -> dict[str, Finding]:
        content: dict[str, str | None] = {**SYSTEM}
        for name, text in files.items():
            (path,) = [known for known in SYSTEM if known.rpartition("/")[2].replace("-", "_") == name] or [name]
            content[path] = text
        for path, text in content.items():
            if text is not None:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(text)
        return {finding.key: finding for finding in limits.examine_limits(clients)}

    return examine


def put(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


# ---- Limits


@linux
def test_system_that_is_fine(examine: Examine) -> None:
    """Nothing is to be cured there."""
    found = examine()
    assert {finding.level for finding in found.values()} == {"ok"}
    assert {finding.cure for finding in found.values()} == {None}


@linux
@pytest.mark.parametrize(
    ("files", "clients", "key", "level", "enough", "cure"),
    [
        ({"somaxconn": "128"}, 10_000, "somaxconn", "note", 128, "sudo sysctl -w net.core.somaxconn=16384"),
        ({"somaxconn": "128"}, 128, "somaxconn", "ok", 128, None),
        ({"file_nr": "900 0 1000"}, 10_000, "file-max", "problem", 100, "sudo sysctl -w fs.file-max=16384"),
        ({"file_nr": "900 0 1000"}, 100, "file-max", "ok", 100, None),
        (
            {"max_user_watches": "15000"},
            10_000,
            "epoll",
            "note",
            7500,
            "sudo sysctl -w fs.epoll.max_user_watches=32768",
        ),
        (
            {"max_user_watches": "9000"},
            10_000,
            "epoll",
            "problem",
            4500,
            "sudo sysctl -w fs.epoll.max_user_watches=32768",
        ),
        ({"max_user_watches": "9000"}, 4500, "epoll", "ok", 4500, None),
        (
            {"ip_local_port_range": "32768 40000"},
            10_000,
            "ports",
            "note",
            7233,
            'sudo sysctl -w net.ipv4.ip_local_port_range="1024 65535"',
        ),
        ({}, 28_232, "ports", "ok", 28_232, None),
        ({"ip_local_reserved_ports": "40000-40099,50000,70"}, 28_232, "ports", "note", 28_131, None),
        ({}, 70_000, "ports", "note", 28_232, None),
        ({"tcp_wmem": "4096 16384 32768"}, 10, "tcp_wmem", "note", None, None),
        ({"meminfo": "MemTotal: 131072 kB\n"}, 2048, "memory", "ok", 2048, None),
        ({"meminfo": "MemTotal: 131072 kB\n"}, 2049, "memory", "note", 2048, None),
    ],
)
def test_limits(
    files: dict[str, str], clients: int, key: str, level: str, enough: int | None, cure: str | None, examine: Examine
) -> None:
    """A limit is judged for that many clients, and told with how many it is enough for and what raises it."""
    finding = examine(clients, **files)[key]
    assert (finding.level, finding.enough_for) == (level, enough)
    if enough is not None:
        assert str(enough) in finding.text
    if cure is not None or level == "ok":
        assert finding.cure == cure


@linux
def test_tcp_memory(examine: Examine) -> None:
    """The pressure threshold is in pages, buffers in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    enough = 200_000 * page // 16384
    assert examine(enough)["tcp_mem"].level == "ok"
    finding = examine(enough + 1)["tcp_mem"]
    assert (finding.level, finding.enough_for) == ("note", enough)
    assert finding.cure is not None
    name, _, value = finding.cure.removeprefix("sudo sysctl -w ").partition("=")
    assert name == "net.ipv4.tcp_mem"
    low, pressure, high = map(int, value.strip('"').split())
    assert low < pressure < high
    # Who does as told is told no more.
    assert examine(enough + 1, tcp_mem=f"{low} {pressure} {high}")["tcp_mem"].level == "ok"


@linux
def test_what_is_not_there_is_left_out(tmp_path: Path, examine: Examine) -> None:
    """Of files that are missing, empty or strange, nothing is told."""
    found = examine(**dict.fromkeys(("somaxconn", "tcp_rmem"), ""), tcp_wmem="many", file_nr="1 2")
    assert found.keys().isdisjoint({"somaxconn", "tcp_rmem", "tcp_wmem", "tcp_mem", "file-max"})
    shutil.rmtree(tmp_path / "proc")
    assert {finding.key for finding in limits.examine_limits(10)} == {"notsent_lowat", "processors", "threads"}


def test_another_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, nor the module resource, next to nothing is told."""
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert [finding.key for finding in limits.examine_limits(10)] == ["processors", "threads"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "platform", "level", "enough", "cure"),
    [
        (10_064, 20_000, "linux", "ok", 10_000, None),
        (-1, -1, "linux", "ok", None, None),
        (1024, -1, "darwin", "problem", 960, "ulimit -n 10064"),
        (1024, 10_064, "darwin", "problem", 960, "ulimit -n 10064"),
        (1024, 4096, "darwin", "problem", 960, None),
        (32, 20_000, "linux", "problem", 0, "ulimit -n 10064   (or LimitNOFILE=10064 in a unit of systemd)"),
        (
            1024,
            4096,
            "linux",
            "problem",
            960,
            "sudo prlimit --pid $$ --nofile=10064:10064   (or LimitNOFILE=10064 in a unit of systemd)",
        ),
    ],
)
def test_open_files(
    soft: int,
    hard: int,
    platform: str,
    level: str,
    enough: int | None,
    cure: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The soft limit counts; up to the hard one, everybody may raise it."""
    import resource

    soft, hard = (resource.RLIM_INFINITY if limit == -1 else limit for limit in (soft, hard))
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr(sys, "platform", platform)
    (finding,) = limits._open_files(10_000)
    assert (finding.level, finding.enough_for, finding.cure) == (level, enough, cure)


@linux
def test_open_files_beyond_what_the_kernel_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even root may raise the hard limit above fs.nr_open, which comes first then."""
    import resource

    monkeypatch.setattr(limits, "ROOT", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 4096))
    put(tmp_path, {"proc/sys/fs/nr_open": "1048576"})
    (finding,) = limits._open_files(2_000_000)
    assert finding.cure is not None
    assert finding.cure.startswith(
        "sudo sysctl -w fs.nr_open=2097152 && sudo prlimit --pid $$ --nofile=2000064:2000064"
    )


@linux
def test_the_cure_of_open_files_cures(tmp_path: Path) -> None:
    """A shell that does as it is told has no such problem any more."""
    import resource

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 500:
        pytest.skip("the hard limit is very low")
    command = f"{sys.executable} -m wsfast doctor --clients 300 --json"
    shell = f"ulimit -Sn 200; {command} > before; ulimit -Sn 364; {command} > after; true"
    processes.run("sh", "-c", shell, cwd=tmp_path, check=True)
    findings = {}
    for name in ("before", "after"):
        content = json.loads((tmp_path / name).read_text())
        (findings[name],) = [finding for finding in content["findings"] if finding["key"] == "open-files"]
    assert findings["before"]["level"] == "problem"
    assert findings["before"]["enough_for"] == 136
    assert findings["before"]["cure"].startswith("ulimit -n 364 ")
    assert findings["after"]["level"] == "ok"


MIB = 1 << 20


@linux
@pytest.mark.parametrize(
    ("cgroup", "files", "limit", "share"),
    [
        # Version 2 in a container, in whose view its own group is the top.
        ("0::/\n", {"memory.max": f"{256 * MIB}\n", "cpu.max": "50000 100000\n"}, 256, 0.5),
        ("0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"}, None, None),
        # The group of a parent is narrower.
        (
            "0::/a/b\n",
            {"a/b/memory.max": f"{512 * MIB}", "a/memory.max": f"{128 * MIB}", "a/b/cpu.max": "max 100000"},
            128,
            None,
        ),
        # Version 1, as seen from outside, and in a container, where that path is not there.
        (
            "4:memory:/x\n2:cpu,cpuacct:/x\n",
            {
                "memory/x/memory.limit_in_bytes": f"{64 * MIB}",
                "cpu,cpuacct/x/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            64,
            1.5,
        ),
        ("4:memory:/docker/1234\n", {"memory/memory.limit_in_bytes": f"{32 * MIB}"}, 32, None),
        (
            "4:memory:/\n2:cpu:/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            None,
            None,
        ),
    ],
)
def test_control_groups(
    cgroup: str, files: dict[str, str], limit: int | None, share: float | None, tmp_path: Path, examine: Examine
) -> None:
    """The least limit of all groups that this process is in counts, in either version of control groups."""
    put(tmp_path / "sys/fs/cgroup", files)
    found = examine(100, cgroup=cgroup)
    memory, processors = found["memory"], found["processors"]
    assert memory.value["of"] == ("machine" if limit is None else "control group")
    assert memory.value["bytes"] == (16 << 30 if limit is None else limit * MIB)
    assert memory.enough_for == memory.value["bytes"] // 65536
    assert processors.value == {"processors": 4, "quota": share}
    assert processors.level == ("note" if share == 0.5 else "ok")


def test_one_processor(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is enough for a server, and not for the benchmark."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    finding = examine()["processors"]
    assert finding.level == "note"
    assert finding.text.startswith("1 processor for this process")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such option")
def test_no_notsent_lowat(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, channels act late; and it is tried, since to be declared is not to work."""
    monkeypatch.setattr(socket, "TCP_NOTSENT_LOWAT", 12345, raising=False)
    assert examine()["notsent_lowat"].level == "note"
    monkeypatch.delattr(socket, "TCP_NOTSENT_LOWAT")
    finding = examine()["notsent_lowat"]
    assert (finding.level, finding.value) == ("note", {"available": False})


# ---- What is installed


def installed() -> dict[str, Finding]:
    return {finding.key: finding for finding in software.examine_software()}


def test_this_installation() -> None:
    """What is told of it is what it is."""
    found = installed()
    assert found["core"].value["in_use"] == ("twin" if core is _pure else "extension")
    if core is not _pure:
        assert (found["core"].level, found["core"].value["file"]) == ("ok", core.__file__)
    assert found["python"].value["version"] == platform.python_version()
    assert found["websockets"].value["version"] == importlib.metadata.version("websockets")
    assert found["websockets"].level == "ok"
    assert found["compression"].value["default"] == "deflate"
    assert found["free-threading"].value["build"] == bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    versions = found["libraries"].value["versions"]
    assert versions == {name: importlib.metadata.version(name) for name in versions}
    assert found["libraries"].value["refused"] == {}


@pytest.mark.parametrize(
    ("version", "level"), [("13.1", "problem"), ("14.0", "ok"), ("17.9.1", "ok"), ("18.0", "problem")]
)
def test_websockets(version: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are supported that wsfast requires."""
    monkeypatch.setattr("websockets.version.version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["uvloop>=1; extra == 'x'", "websockets<18,>=14"])
    (finding,) = software._websockets()
    assert finding.level == level
    assert finding.cure == (None if level == "ok" else 'pip install "websockets<18,>=14"')


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that it is not tested with is told of."""
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.1")
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "1"))
    (finding,) = software._python()
    assert (finding.level, finding.value["version"]) == ("note", "3.99.1")
    assert "wsfast is tested with CPython 3.11 to " in finding.text


def test_wsfast_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is only a directory on the path, nothing tells what it supports, and nothing is claimed."""

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("metadata", "requires", "version"):
        monkeypatch.setattr(importlib.metadata, function, missing)
    found = installed()
    assert (found["python"].level, found["websockets"].level) == ("note", "note")
    assert found["libraries"].value["versions"] == {}
    assert found["libraries"].level == "ok"
    assert found["loop"].value["uvloop"] is None


def test_library_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that its adapter does not take is told of, with what the adapter says."""
    monkeypatch.setattr(software, "LIBRARIES", {"uvicorn": "uvicorn"})
    monkeypatch.setattr(software, "_version", lambda name: "0.1" if name in ("uvicorn", "granian") else None)

    def refuse(name: str) -> None:
        raise TypeError("takes uvicorn 0.35 or later")

    monkeypatch.setattr(importlib, "import_module", refuse)
    (finding,) = software._libraries()
    assert (finding.level, finding.cure) == ("note", "pip install --upgrade uvicorn")
    assert "wsfast cannot send to connections of uvicorn: TypeError: takes uvicorn 0.35 or later" in finding.text
    assert "under granian, messages go through a queue" in finding.text


def test_free_threading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a build is told of, and whether it has its GIL all the same."""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: 1)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    (finding,) = software._free_threading()
    assert (finding.level, finding.value) == ("note", {"build": True, "gil": False})
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    (finding,) = software._free_threading()
    assert finding.text.startswith("a free-threaded build, but the GIL is on")


def test_proactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the default loop of Windows, nothing is faster."""

    class ProactorEventLoop:
        def close(self) -> None:
            pass

    monkeypatch.setattr(asyncio, "ProactorEventLoop", ProactorEventLoop, raising=False)
    monkeypatch.setattr(asyncio, "new_event_loop", ProactorEventLoop)
    (finding,) = software._loop()
    assert finding.level == "note"
    assert "ProactorEventLoop" in finding.text


def test_sendfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps large frames from leaving by sendfile() is told, and what cures it."""

    def found() -> tuple[str, Any, str | None]:
        (finding,) = software._sendfile()
        return finding.level, finding.value["why"], finding.cure

    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    monkeypatch.setattr(software, "core", _pure)
    assert found() == ("ok", "the pure-Python core leaves all writing to the transports", None)
    monkeypatch.setattr(software, "core", object())
    why = "sendfile() from memory to a socket fails here: Operation not permitted"
    assert found() == ("note", why, None)
    monkeypatch.setenv("WSFAST_SENDFILE", "0")
    assert found() == ("note", "WSFAST_SENDFILE is 0", "unset WSFAST_SENDFILE")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert list(software._sendfile()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="there is no sendfile() from memory")
def test_sendfile_here() -> None:
    """On Linux, large frames leave by sendfile(), unless there is no extension."""
    content = run()["by key"]
    assert content["sendfile"]["value"]["in_use"] is (content["core"]["value"]["in_use"] == "extension")


# ---- The command


def run(*argv: str, code: int | None = None, package: Path | None = None, **environment: str) -> dict[str, Any]:
    """Run the doctor in a fresh interpreter, with another wsfast if that is given; return what it told."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WSFAST", "PYTHON"))}
    command = [sys.executable, "-m", "wsfast", "doctor", "--clients", "1", "--json", *argv]
    if package is not None:
        # Without the site module, the editable installation is out of the way.
        command.insert(1, "-S")
        clean["PYTHONPATH"] = os.pathsep.join([str(package), *site.getsitepackages()])
    done = processes.run(*command, env=clean | environment)
    assert done.returncode in ((0, 1) if code is None else (code,)), done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (content["status"] == "problem")
    content["by key"] = {finding["key"]: finding for finding in content["findings"]}
    assert len(content["by key"]) == len(content["findings"])
    return content


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A directory with a wsfast that has no extension."""
    source = Path(wsfast.__file__).parent
    shutil.copytree(source, tmp_path / "wsfast", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
    return tmp_path


def test_keys_are_documented() -> None:
    """Whoever reads --json finds every key in --help."""
    content = run()
    keys = EPILOG.partition("Keys are ")[2].partition(";")[0].replace("\n", " ").split(", ")
    assert set(content["by key"]) <= set(keys)
    if sys.platform == "linux":
        assert list(content["by key"]) == keys
    for finding in content["findings"]:
        assert set(finding) == {"key", "level", "text", "cure", "enough_for", "value"}
        assert finding["level"] in ("ok", "note", "problem")
    assert (content["wsfast"], content["clients"]) == (wsfast.__version__, 1)


def test_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a line for each finding and one for each cure; the status tells whether there is a problem."""
    findings = [Finding(key="long-key", level="ok", text="fine"), Finding(key="b", level="note", text="so", cure="do")]
    monkeypatch.setattr(software, "examine_software", lambda: findings)
    monkeypatch.setattr(limits, "examine_limits", lambda clients: [])
    assert main(["doctor", "--clients", "7"]) == 0
    assert capsys.readouterr().out == (
        "ok       long-key  fine\nnote     b         so\n                   fix: do\n"
        "\nno problems, 1 note for 7 clients\n"
    )
    findings.append(Finding(key="c", level="problem", text="bad"))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("problem  c         bad\n\n1 problem, 1 note for 10000 clients\n")


def test_environment() -> None:
    """What is set in the environment is told, with what unsets it."""
    content = run(WSFAST_PURE="1", PYTHONASYNCIODEBUG="1")["by key"]
    assert content["core"]["value"]["why"] == "WSFAST_PURE"
    assert content["core"]["level"] == "note"
    assert content["core"]["cure"] == "unset WSFAST_PURE"
    assert content["core"]["value"]["error"] is None
    assert (content["asyncio-debug"]["level"], content["asyncio-debug"]["cure"]) == ("note", "unset PYTHONASYNCIODEBUG")
    assert run(PYTHONDEVMODE="1")["by key"]["asyncio-debug"]["cure"].startswith("unset PYTHONDEVMODE")


def test_extension_that_was_not_built(package: Path) -> None:
    """The twin works, and that is a note."""
    finding = run(package=package)["by key"]["core"]
    assert (finding["level"], finding["value"]["why"]) == ("note", "not built")
    assert str(package / "wsfast") in finding["text"]
    assert "WSFAST_REQUIRE_EXT=1" in finding["cure"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no extension for Windows")
def test_extension_for_another_python(package: Path) -> None:
    """It is not what this Python would load, though it is there: a problem, with its name."""
    stranger = package / "wsfast" / "_core" / "_core.cpython-309-plan9.so"
    stranger.write_bytes(b"")
    finding = run(package=package, code=1)["by key"]["core"]
    assert (finding["level"], finding["value"]["why"]) == ("problem", "another Python")
    assert finding["value"]["strangers"] == [str(stranger)]
    assert f"{stranger}; this one needs _core{importlib.machinery.EXTENSION_SUFFIXES[0]}" in finding["text"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no extension for Windows")
def test_extension_that_is_broken(package: Path) -> None:
    """The ImportError of wsfast names the doctor, who tells the file, and what is said of it."""
    broken = package / "wsfast" / "_core" / f"_core{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"this is no shared library")
    environment = {"PYTHONPATH": os.pathsep.join([str(package), *site.getsitepackages()])}
    done = processes.run(sys.executable, "-S", "-c", "import wsfast", env=environment)
    assert done.returncode == 1
    error, note = done.stderr.splitlines()[-2:]
    assert error.startswith("ImportError: ")
    assert note == "Run `WSFAST_PURE=1 wsfast doctor` to check the whole installation."
    finding = run(package=package, code=1, WSFAST_PURE="1")["by key"]["core"]
    assert finding["level"] == "problem"
    assert finding["value"]["file"] == str(broken)
    assert finding["value"]["error"] == error
    assert error in finding["text"]
    assert "WSFAST_REQUIRE_EXT=1" in finding["cure"]


@pytest.mark.skipif(core is _pure, reason="the extension is absent")
def test_extension_that_would_load(package: Path) -> None:
    """With WSFAST_PURE=1, an extension that is fine is no problem; without it, it is in use."""
    shutil.copy(core.__file__, package / "wsfast" / "_core")
    finding = run(package=package, WSFAST_PURE="1")["by key"]["core"]
    assert (finding["level"], finding["value"]["error"]) == ("note", None)
    finding = run(package=package)["by key"]["core"]
    assert (finding["level"], finding["value"]["in_use"]) == ("ok", "extension")
    assert finding["value"]["file"] == str(package / "wsfast" / "_core" / Path(core.__file__).name)


def test_extension_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes nobody with it."""
    monkeypatch.setattr(software, "LOAD", "import os; os.abort()")
    error = software._try_to_load("x")
    assert error is not None
    assert error.startswith("Python ended with status ")
