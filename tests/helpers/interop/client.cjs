// Clients of the npm package ws. Each line of the input says which connection to open: {"name", "url", "deflate"}. When
// that is closed, a line of the output says what it received: {"name", "code", "received": [[type, bytes, sha256]]}.
"use strict";

const crypto = require("node:crypto");
const readline = require("node:readline");
const WebSocket = require("ws");

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { name, url, deflate } = JSON.parse(line);
  const received = [];
  const socket = new WebSocket(url, { perMessageDeflate: deflate, maxPayload: 0 });
  socket.on("message", (data, isBinary) => {
    const digest = crypto.createHash("sha256").update(data).digest("hex");
    received.push([isBinary ? "binary" : "text", data.length, digest]);
  });
  socket.on("error", (error) => {
    console.error(name, `after ${received.length} messages:`, error);
    process.exit(1);
  });
  socket.on("close", (code) => console.log(JSON.stringify({ name, code, received })));
});
