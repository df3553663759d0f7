"""Scenarios: questions that the time of a call does not answer. Each has a module, and a line here."""

from __future__ import annotations

from importlib import import_module

from .scenario import Scenario

__all__ = ["SCENARIOS"]

_MODULES = (
    "stalled",
    "conflate",
    "topics",
    "cores",
    "crowded",
    "heartbeat",
    "frameworks",
    "integrations",
    "relay",
    "herd",
    "rolling",
    "memory_subscriptions",
    "wire",
    "large",
    "tls",
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (import_module(f"{__name__}.{module}").SCENARIO for module in _MODULES)
}
"""Scenarios by their names, in the order in which they are shown."""
