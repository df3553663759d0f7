"""A worker class for gunicorn: `gunicorn app:app --worker-class wsfast.gunicorn.UvicornWorker`.

It needs the packages gunicorn and uvicorn-worker. An application that calls `wsfast.uvicorn.install()` can use
`uvicorn_worker.UvicornWorker` as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ._arguments import needs

if TYPE_CHECKING:  # gunicorn has no types

    class _UvicornWorker:
        CONFIG_KWARGS: ClassVar[dict[str, Any]]

else:
    with needs("gunicorn uvicorn-worker", "gunicorn", "uvicorn_worker"):
        from uvicorn_worker import UvicornWorker as _UvicornWorker

__all__ = ["UvicornWorker"]


class UvicornWorker(_UvicornWorker):
    """The worker class of uvicorn-worker, with `wsfast.uvicorn:WebSocketsProtocol` for WebSockets."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **_UvicornWorker.CONFIG_KWARGS,
        "ws": "wsfast.uvicorn:WebSocketsProtocol",
    }
