"""What a connection that is lost calls."""

from __future__ import annotations

from ._core import core

__all__ = ["Lost"]


class Lost:
    """Ends all subscriptions of a peer when its connection is lost."""

    __slots__ = ("peer",)

    def __init__(self, peer: core.Peer) -> None:
        self.peer = peer

    def __call__(self, _: object) -> None:
        if self.peer.dispatcher is not None:
            self.peer.dispatcher.end(self.peer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lost) and self.peer is other.peer

    def __hash__(self) -> int:
        return hash(id(self.peer))
