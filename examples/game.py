"""A game at 20 ticks per second. New players get a snapshot, then every change. Slow players hold up nobody.

Run `python examples/game.py 8765`, connect WebSocket clients to ws://127.0.0.1:8765/ann, and send "up", "down", "left"
or "right". The server sends JSON:

    {"players": {"ann": [3, 4], "bob": [0, 7]}}     the snapshot, once, first
    {"player": "bob", "at": [0, 8]}                 a player has moved or is new
    {"player": "bob", "at": null}                   a player has left

A change says where a player is, not how far the player went. So a client that fell behind needs only the newest change
of each player. `Conflate` keeps exactly these: at most one message per player waits for a client.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import wsfast

INTERVAL = 1 / 20
SIZE = 20
STEPS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


class Game:
    """Players on a board. A player that leaves at one edge enters at the opposite one."""

    def __init__(self) -> None:
        self.hub = wsfast.Hub(slow=wsfast.Conflate())
        self.players: dict[str, tuple[int, int]] = {}
        self.moves: dict[str, str] = {}  # in this tick; a player moves at most once
        self.changed: set[str] = set()

    def tick(self) -> None:
        """Move all players and publish the changes. They are sent together: one system call per client."""
        for name, move in self.moves.items():
            if name in self.players:
                (x, y), (right, down) = self.players[name], STEPS[move]
                self.players[name] = (x + right) % SIZE, (y + down) % SIZE
                self.changed.add(name)
        for name in self.changed:
            self.hub.publish("world", json.dumps({"player": name, "at": self.players.get(name)}), key=name)
        self.moves.clear()
        self.changed.clear()

    async def run(self, ended: asyncio.Event) -> None:
        """Tick by the clock: a tick that takes long does not delay later ones."""
        loop = asyncio.get_running_loop()
        next_tick = loop.time()
        while not ended.is_set():
            self.tick()
            next_tick = max(next_tick + INTERVAL, loop.time())
            await asyncio.sleep(next_tick - loop.time())

    async def play(self, connection: Any) -> None:
        """Serve one player."""
        name = connection.request.path.strip("/")
        if not name or name in self.players:
            await connection.close(1008, "choose another name")
            return
        self.players[name] = (0, 0)
        self.changed.add(name)
        try:
            with self.hub.register(connection, name), self.hub.subscribe(connection, "world"):
                # Sent after earlier changes and before later ones, so no change is missed or duplicated.
                self.hub.send(name, json.dumps({"players": self.players}))
                async for move in connection:
                    if move in STEPS:
                        self.moves[name] = move
        finally:
            del self.players[name]
            self.changed.add(name)


async def main(port: int) -> None:
    """Run the game until a signal ends it."""
    game, ended = Game(), asyncio.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with wsfast.serve(game.play, "127.0.0.1", port):
        print(f"ready at ws://127.0.0.1:{port}", flush=True)
        await game.run(ended)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8765))
