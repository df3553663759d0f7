from __future__ import annotations

import asyncio
import datetime
import gc
import ipaddress
import logging
import os
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings

import wsfast
from helpers.cores import CORES, LOOPS, load_core, use_core
from helpers.fixtures import RUN_TIMEOUT, Agree, Run
from helpers.stage import Outcome, Scenario, play, upstream

# Hypothesis would count an example that took 200 ms as a failure; nothing here is to depend on the machine's speed.
settings.register_profile(
    "any speed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("WSFAST_TEST_DERANDOMIZE")),
)
settings.load_profile("any speed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--support", type=Path, metavar="FILE", help="append to FILE what test_support.py finds, rather than check it"
    )
    parser.addoption("--threads", type=int, metavar="N", help="have N threads send each batch, one frame at a time")
    parser.addoption("--sendfile", action="store_true", help="have frames leave by sendfile(), the smallest as well")


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("--threads")
    if threads is not None:
        for name in CORES:
            load_core(name).set_threads(threads, detach=False, size=1, chunk=1)
    if config.getoption("--sendfile") and "c" in CORES:
        load_core("c").set_files(1, receivers=1)


@pytest.fixture(scope="session", autouse=True)
def strict() -> None:
    """Fail where Python was to look closely and does not: processes do not inherit the interpreter's options."""
    if os.environ.get("WSFAST_TEST_STRICT"):
        assert sys.flags.dev_mode, "Python runs without -X dev"
        assert sys.flags.bytes_warning == 2, "Python runs without -bb"


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Have collections of garbage leave alone what is there already, as thousands of tests: many tests collect."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of this test alone: a cycle that an earlier test left, a relay that was never used, warns now."""
    gc.collect()
    caplog.clear()
    return caplog


@pytest.fixture(params=CORES)
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the two cores, in use by the whole package."""
    module = load_core(request.param)
    use_core(module, monkeypatch)
    return module


@pytest.fixture(params=LOOPS)
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Name of a kind of event loops."""
    return str(request.param)


@pytest.fixture
def run(loop_kind: str) -> Run:
    """Run a coroutine function in a fresh event loop of the kind."""

    def run(main: Callable[[], Coroutine[Any, Any, Any]], timeout: float = RUN_TIMEOUT) -> Any:
        factory = uvloop.new_event_loop if loop_kind == "uvloop" else asyncio.SelectorEventLoop
        with asyncio.Runner(loop_factory=factory, debug=False) as runner:
            return runner.run(asyncio.wait_for(main(), timeout))

    return run


NOISE = {("asyncio", logging.WARNING, text) for text in ("socket.send() raised exception.", "SSL connection is closed")}
"""What asyncio logs when upstream's broadcast() goes on writing to a transport that is closing; ours does not write."""


@pytest.fixture
def agree(core: Any, run: Run, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> Agree:
    """Play a scenario with upstream's broadcast() and with ours; return the outcome, which must be the same."""

    def agree(scenario: Scenario, *, level: int = logging.INFO) -> Outcome:
        theirs = run(lambda: play(scenario, upstream, tls, level=level))
        for server_connection in (wsfast.ServerConnection, None) if core.sends_directly else (None,):
            ours = run(
                lambda kind=server_connection: play(  # type: ignore[misc]
                    scenario, wsfast.broadcast, tls, level=level, server_connection=kind
                )
            )
            assert ours.exceptions == theirs.exceptions
            assert ours.records == [record for record in theirs.records if record not in NOISE]
            assert ours.notes == theirs.notes
            assert len(ours.streams) == len(theirs.streams)
            for our_stream, their_stream in zip(ours.streams, theirs.streams, strict=True):
                assert our_stream == their_stream
            keys = ours.keys + theirs.keys
            assert len(set(keys)) == len(keys), "a mask key was used twice"
        assert isinstance(ours, Outcome)
        return ours

    return agree


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of our own making, and its key, in one file."""
    path: Path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(pem)
    return path


@pytest.fixture(scope="session")
def tls(certificate: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server with a certificate of its own making and of a client that trusts it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A client of websockets.sync reads and writes in two threads, which OpenSSL does not allow: where a ticket arrives
    # while the request is being written, one handshake in some hundreds never ends, also without wsfast.
    server.num_tickets = 0
    server.load_cert_chain(certificate)
    client = ssl.create_default_context(cafile=certificate)
    return server, client
