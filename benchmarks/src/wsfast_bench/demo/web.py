"""The page of the demo over HTTP, and who may have it and its control socket."""

from __future__ import annotations

import http
from importlib import resources

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

__all__ = ["CONTROL", "Web"]

CONTROL = "/control"
"""Where the page's WebSocket connects to."""

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


class Web:
    """Answers requests: with the files of the page, and with an error to those that come from elsewhere.

    A page of another site can send requests to this machine as well. The browser then names that site in Origin, or, if
    the site has a name that leads to 127.0.0.1, in Host (DNS rebinding).

    Args:
        port: The server's.
    """

    def __init__(self, port: int) -> None:
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}
        folder = resources.files("wsfast_bench.demo") / "page"
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        sockets = " ".join(f"ws://{host}" for host in sorted(self._hosts))
        self._policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src {sockets}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def answer(self, request: Request) -> Response | None:
        """Return the response to a request; None if it may become a WebSocket."""
        if not set(request.headers.get_all("Host")) <= self._hosts:
            return self._error(http.HTTPStatus.FORBIDDEN, "This server is for 127.0.0.1 only.")
        origins = request.headers.get_all("Origin")
        if not set(origins) <= self._origins:
            return self._error(http.HTTPStatus.FORBIDDEN, "Pages of other sites may not use this server.")
        path = request.path.partition("?")[0]
        if path in self._files:
            body, kind = self._files[path]
            return self._response(http.HTTPStatus.OK, body, kind)
        if path == CONTROL and not origins:
            return self._error(http.HTTPStatus.FORBIDDEN, "The control socket is for the page: Origin is missing.")
        return None

    def missing(self) -> Response:
        """Return the response to a request for a path that does not exist."""
        return self._error(http.HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _error(self, status: http.HTTPStatus, text: str) -> Response:
        return self._response(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _response(self, status: http.HTTPStatus, body: bytes, kind: str) -> Response:
        headers = Headers(
            {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Content-Security-Policy": self._policy,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
                "Connection": "close",
            }
        )
        return Response(status.value, status.phrase, headers, body)
