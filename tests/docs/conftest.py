"""The tests of the site need the site: `make docs` builds it, and runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from uvicorn.protocols.http import h11_impl, httptools_impl

collect_ignore = [] if os.environ.get("WSFAST_TEST_SITE") else ["test_site.py"]


@pytest.fixture(autouse=True)
def not_installed() -> Iterator[None]:
    """Undo `wsfast.uvicorn.install()`, which blocks of the pages call."""
    yield
    for protocol in (h11_impl.H11Protocol, httptools_impl.HttpToolsProtocol):
        if "ws_protocol_class" in vars(protocol):
            delattr(protocol, "ws_protocol_class")
