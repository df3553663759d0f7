from __future__ import annotations

import logging
import ssl
from typing import Any

import pytest

import wsfast
from helpers.fixtures import Ours, Run
from helpers.stage import Outcome, Scenario, play


@pytest.fixture
def ours(core: Any, run: Run, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> Ours:
    """Play a scenario with our broadcast() alone, where upstream's does not do the same; return the outcome."""

    def ours(scenario: Scenario, *, level: int = logging.INFO) -> Outcome:
        outcome = run(lambda: play(scenario, wsfast.broadcast, tls, level=level))
        assert isinstance(outcome, Outcome)
        return outcome

    return ours
