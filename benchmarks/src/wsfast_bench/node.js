// A server by `ws` for the method "node": it makes one frame for all clients and writes that to their sockets.
//
// The first argument says in JSON how; each line of standard input has the messages of a call, in JSON. It tells by lines
// of JSON: its port, each client, and for each call the nanoseconds that it took and those of the processor.
"use strict";

const { WebSocketServer, Sender } = require("ws");
const { createInterface } = require("node:readline");
const { constants, deflateRawSync } = require("node:zlib");

const { deflate, binary, keepalive, cache, tick } = JSON.parse(process.argv[2]);
const caches = [Buffer.alloc(cache, 1), Buffer.alloc(cache, 1)];
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 2048, perMessageDeflate: deflate });
const tell = (what) => process.stdout.write(JSON.stringify(what) + "\n");

function frame(message) {
  let data = Buffer.from(message, binary ? "latin1" : "utf8");
  if (deflate) data = deflateRawSync(data, { finishFlush: constants.Z_SYNC_FLUSH }).subarray(0, -4);
  return Sender.frame(data, { fin: true, rsv1: deflate, opcode: binary ? 2 : 1, mask: false, readOnly: true });
}

server.on("listening", () => tell({ port: server.address().port }));
server.on("connection", (client) => tell({ accepted: client._socket.remotePort }));
if (keepalive) setInterval(() => server.clients.forEach((client) => client.ping()), keepalive * 1000);

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const messages = JSON.parse(line);
    Buffer.compare(...caches); // has to read both
    const before = process.cpuUsage();
    const start = process.hrtime.bigint();
    const frames = Buffer.concat(messages.flatMap(frame));
    for (const client of server.clients) client._socket.write(frames);
    const call = Number(process.hrtime.bigint() - start);
    const end = () => {
      const { user, system } = process.cpuUsage(before);
      tell({ call, cpu: (user + system) * 1000 });
    };
    if (tick) setTimeout(end, tick);
    else end();
  })
  .on("close", () => process.exit());
