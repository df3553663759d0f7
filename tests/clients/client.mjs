// Runs the JavaScript client in Node. Usage: client.mjs URL OPTIONS TOPIC... (URL of wsfast.js first). Prints a line in
// JSON for each message and event, and ends when the client does, or when its input ends.
import { createRequire } from "node:module";
import process from "node:process";

const [library, url, options, ...topics] = process.argv.slice(2);
const WebSocket = createRequire(process.env.NODE_PATH + "/")("ws");
const { Client } = await import(library);
const print = (kind, value) => process.stdout.write(`${JSON.stringify([kind, value])}\n`);
const decoder = new TextDecoder();

let seed = 1;
const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
const client = new Client(url, { WebSocket, random, ...JSON.parse(options) });
for (const event of ["open", "close", "wait", "subscribed", "gap", "error", "message", "end"]) {
  client.on(event, (value) => print(event, value));
}
for (const topic of topics) {
  client.subscribe(topic, ({ offset, payload }) => {
    print("got", [topic, offset, typeof payload === "string" ? payload : decoder.decode(payload)]);
  });
}
client.on("end", () => process.stdin.destroy());
process.stdin.on("end", () => {
  print("duplicates", client.duplicates);
  client.close();
});
process.stdin.resume();
