// Clients of the npm package socket.io-client. Each line of the input says which to connect: {"url", "transports"}. Each
// prints a line when it is connected: {"connected": id}. At the event "end", it prints what it received: {"id",
// "transport", "upgraded", "received": [[event, ...arguments]]}, with bytes as {"hex"}, and disconnects.
"use strict";

const readline = require("node:readline");
const { io } = require("socket.io-client");

const plain = (value) => {
  if (Buffer.isBuffer(value) || value instanceof ArrayBuffer || ArrayBuffer.isView(value)) {
    return { hex: Buffer.from(value).toString("hex") };
  }
  return Array.isArray(value) ? value.map(plain) : value;
};

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { url, transports } = JSON.parse(line);
  const received = [];
  let upgraded = -1;
  const socket = io(url, { transports, forceNew: true, reconnection: false });
  const fail = (what) => (error) => {
    console.error(transports, `after ${received.length} events:`, what, error);
    process.exit(1);
  };
  socket.on("connect_error", fail("connect_error"));
  socket.on("disconnect", fail("disconnect"));
  socket.io.on("open", () => socket.io.engine.on("upgrade", () => (upgraded = received.length)));
  socket.on("connect", () => console.log(JSON.stringify({ connected: socket.id })));
  socket.onAny((event, ...values) => {
    const answer = typeof values.at(-1) === "function" ? values.pop() : null;
    received.push([event, ...plain(values)]);
    if (answer) answer(values[0] * 2);
    if (event === "end") {
      const transport = socket.io.engine.transport.name;
      console.log(JSON.stringify({ id: socket.id, transport, upgraded, received }));
      socket.off("disconnect").disconnect();
    }
  });
});
