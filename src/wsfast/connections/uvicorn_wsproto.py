"""uvicorn's protocol based on wsproto: see `wsfast.connections.uvicorn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import uvicorn.protocols.websockets.wsproto_impl
import wsproto.events
from websockets.protocol import CLOSED, CLOSING, CONNECTING, State

from wsfast._encoding.deflate import Encoder

from . import ConnectionLayout
from .foreign import Closer, Ended, layout_of
from .uvicorn import UvicornConnection
from .wsproto import closers_of, encoder_of, is_fragmented, state_of, why_lost

__all__ = ["WSProtocol"]


class WSProtocol(UvicornConnection, uvicorn.protocols.websockets.wsproto_impl.WSProtocol):
    """uvicorn's `WSProtocol`, with support for wsfast."""

    _wsfast_timed_out = False

    @classmethod
    def layout(cls) -> ConnectionLayout | None:
        """See `Foreign`."""
        return layout_of(cls, transport="_wsfast_transport", reports=True)

    @property
    def state(self) -> State:
        """The state of the connection."""
        if not self.handshake_complete:
            return CONNECTING
        if self.disconnected:
            return CLOSED
        return CLOSING if self.close_sent else state_of(self._wsfast_conn)

    @property
    def send_in_progress(self) -> Any:
        """True between the fragments of a message."""
        return is_fragmented(self._wsfast_conn) or None

    def encoder(self) -> Encoder | Literal[False] | None:
        """See `Foreign`."""
        return encoder_of(self._wsfast_conn)

    def closers(self) -> Sequence[Closer]:
        """See `Foreign`."""
        return closers_of(self._wsfast_conn)

    def keepalive_timeout(self) -> None:
        """Close the connection because the client did not answer a ping. uvicorn calls this from 0.52 on."""
        self._wsfast_timed_out = True
        super().keepalive_timeout()

    def why_lost(self) -> Ended:
        """See `Foreign`."""
        if self._wsfast_timed_out:
            return Ended.KEEPALIVE
        return Ended.CLOSED_HERE if self.close_sent else why_lost(self._wsfast_conn)

    def _send_close(self, code: int, reason: str) -> None:
        self.transport.write(self.conn.send(wsproto.events.CloseConnection(code=code, reason=reason)))
