"""What happens in a round, drawn from a seed."""

from __future__ import annotations

import random
from typing import Any

from soak.servers import COMPRESSIONS, LIBRARIES

__all__ = ["draw"]

TOPICS = ["eu.bid", "eu.ask", "us.bid", "us.ask", "eu.north.bid", "news"]
PATTERNS = ["eu.*", "*.bid", "eu.>", ">", "*.*"]
COMPRESSING = {"wsfast.serve", "websockets", "legacy", "fastapi", "starlette-wsproto", "aiohttp", "wsproto"}
OF_WEBSOCKETS = {"wsfast.serve", "websockets"}


def _policy(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["Disconnect", "Disconnect", "DropNewest", "DropOldest", "Conflate"])
    policy: dict[str, Any] = {"type": kind}
    if rng.random() < 0.5:
        policy["max_messages"] = rng.choice([20, 300, 5000])
    policy["max_bytes"] = rng.choice([None, 4000, 100_000, 1 << 20]) if "max_messages" in policy else 1 << 20
    if rng.random() < 0.2:
        policy["max_age"] = rng.choice([0.2, 1.0, 5.0])
    return policy


def _feed(rng: random.Random, kind: str, busy: bool, brokers: list[str]) -> dict[str, Any]:
    chaos = rng.random() < 0.35
    return {
        "kind": kind,
        "policy": _policy(rng),
        "chaos": chaos,
        "history": 0 if chaos else rng.choice([0, 0, 5, 50]),  # whoever comes back would get it again
        "last_values": 0 if chaos else rng.choice([0, 20]),
        "streams": rng.choice([0, 0, 1]),
        "keys": rng.choice([1, 10, 200]),
        "largest": rng.choice([1000, 16_000, 200_000]) if not busy else 1000,
        "short": rng.choice([0.0, 0.02]),
        "empty": False,
        "burst": rng.choice([20, 60, 120]) if busy else rng.choice([1, 5, 20]),
        "share": 1.0 if busy else rng.choice([0.2, 0.6, 1.0]),
        "topics": rng.sample(TOPICS, rng.randrange(1, len(TOPICS) + 1)),
        "patterns": rng.sample(PATTERNS, rng.randrange(1, len(PATTERNS) + 1)),
        "users": rng.choice([0, 5]),
        "relay": rng.choice(brokers) if kind == "hub" and brokers and rng.random() < 0.3 else None,
    }


def _acts(rng: random.Random, seconds: float, wild: float) -> list[tuple[float, str, float]]:
    """Return what a client does, and when."""
    acts = []
    if rng.random() < wild:
        for moment in sorted(rng.uniform(0, seconds) for _ in range(rng.randrange(1, 6))):
            what = rng.choices(["stall", "reset", "half", "close", "say"], [4, 2, 1, 1, 2])[0]
            acts.append((moment, what, rng.choice([0.05, 0.5, 3.0]) if what == "stall" else rng.choice([0, 10, 5000])))
    return acts


def draw(seed: str, core: str, seconds: float, brokers: list[str]) -> dict[str, Any]:
    """Return the plan of a round.

    Args:
        seed: Whatever it depends on.
        core: "c" or "py".
        seconds: How long it takes.
        brokers: Kinds of brokers that there are.
    """
    rng = random.Random(seed)
    busy = rng.random() < 0.7
    libraries = rng.choices(list(LIBRARIES), [6, 5, 1, 2, 1, 2, 2, 2, 1], k=rng.randrange(1, 5))
    servers = []
    for library in libraries:
        compression = "off"
        if library in OF_WEBSOCKETS and rng.random() < 0.7:
            compression = rng.choice(list(COMPRESSIONS))
        elif library in COMPRESSING and rng.random() < 0.5:
            compression = "default"
        servers.append({"library": library, "compression": compression, "small": rng.random() < 0.2 and not busy})
    kinds = rng.choices(["channel", "hub", "broadcast"], [4, 4, 2], k=rng.randrange(1, 4))
    feeds = [_feed(rng, kind, busy, brokers) for kind in kinds]
    if rng.random() < 0.5:
        feeds.append({**_feed(rng, "own", False, []), "share": 0.3, "burst": 2, "chaos": False})
    if rng.random() < 0.3:
        rng.choice(feeds)["empty"] = True
    wild = rng.choice([0.0, 0.1, 0.4])
    clients = []
    for _ in range(rng.choice([120, 200]) if busy else rng.choice([10, 40, 120])):
        server = rng.randrange(len(servers))
        deflates = servers[server]["compression"] != "off" and rng.random() < 0.4
        kind = rng.choice(["websockets", "aiohttp"]) if deflates else "picows"
        if not deflates and rng.random() < 0.04:
            kind = rng.choice(["websockets", "aiohttp"])
        own = [number for number, feed in enumerate(feeds) if feed["kind"] == "own"]
        others = [number for number in range(len(feeds)) if number not in own]
        clients.append(
            {
                "server": server,
                "kind": kind,
                "deflate": deflates,
                "rcvbuf": rng.choice([2048, 4096]) if rng.random() < 0.1 and not busy else 0,
                "joins": rng.sample(others, rng.randrange(1, len(others) + 1)) + (own if rng.random() < 0.5 else []),
                "acts": _acts(rng, seconds, wild),
                "pause": rng.choice([0.0, 0.0, 0.3]),
            }
        )
    return {
        "seed": seed,
        "core": core,
        "loop": rng.choice(["asyncio", "uvloop"]),
        "seconds": seconds,
        "servers": servers,
        "feeds": feeds,
        "clients": clients,
        "kicks": rng.choice([0.0, 0.0, 0.002, 0.02]),
        "collections": rng.choice([0.0, 0.01]),
        "finalizers": rng.choice([0.0, 0.1]),
        "threads": rng.choice([0.0, 0.02]),
        "interrupts": rng.choice([0.0, 0.05, 0.3]),
        "pauses": rng.choice([[0.0], [0.0, 0.001, 0.01]]) if busy else [0.001, 0.01, 0.05],
        "senders": rng.choice([1, 2, 4]),  # threads that send
        "detach": rng.random() < 0.7,
        "chunk": rng.choice([1, 1, 16]),
    }
