"""A chat in FastAPI. No client waits for another; a client that falls more than 100 messages behind is disconnected.

Install it with `pip install wsfast fastapi uvicorn` and run `python examples/chat.py 8000`. Then open
http://127.0.0.1:8000 in several windows.
"""

from __future__ import annotations

import contextlib
import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

import wsfast

PAGE = """<!doctype html>
<title>Chat</title>
<form><input id="text" autofocus></form>
<ul id="messages"></ul>
<script>
  const name = prompt("Who are you?") || "somebody";
  const socket = new WebSocket(`ws://${location.host}/chat/${encodeURIComponent(name)}`);
  socket.onmessage = (event) => {
    const item = document.createElement("li");
    item.textContent = event.data;
    document.getElementById("messages").prepend(item);
  };
  document.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const text = document.getElementById("text");
    socket.send(text.value);
    text.value = "";
  };
</script>
"""

app = FastAPI()
chat = wsfast.Channel("chat", slow=wsfast.Disconnect(max_messages=100), history=20)


@app.get("/")
async def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(PAGE)


@app.websocket("/chat/{name}")
async def endpoint(websocket: WebSocket, name: str) -> None:
    """Serve one client of the chat."""
    await websocket.accept()
    with chat.subscribe(websocket):  # the last 20 messages, then every new one
        chat.publish(f"{name} joined", exclude=[websocket])
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                chat.publish(f"{name}: {await websocket.receive_text()}")
    chat.publish(f"{name} left")


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, port=port, ws="wsfast.uvicorn:WebSocketsProtocol")
