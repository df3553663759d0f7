"use strict";

// The server sends a sample four times a second over a WebSocket at /control, and those of the last time first. A command is an
// object with `do` (`tunnel`, `policy`, `rate`) and `value`.

const WINDOW = 30; // seconds that the charts show
const AGAIN = 1000; // milliseconds until the next attempt to connect
const POLICIES = {
  DropOldest: "The oldest of 16 waiting messages makes room.",
  DropNewest: "16 messages wait. New ones are left out.",
  Conflate: "The newest message of each of 8 keys waits.",
  Disconnect: "A client with more than 16 waiting messages is disconnected.",
};

const by = id => document.getElementById(id);
const button = by("tunnel"), controls = by("controls"), lanes = new Map();
let samples = [], socket = null, drawn = false;

const integer = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const mebibytes = bytes => (bytes / 2 ** 20).toFixed(1);
const seconds = value => value < 1 ? `${(value * 1e3).toFixed(value < 0.0995 ? 1 : 0)} ms` : `${value.toFixed(1)} s`;
const tell = (node, text) => { if (node.textContent !== text) node.textContent = text; };

// Each chart: the value of a lane's numbers, and the least top of the scale.
const CHARTS = {
  delivered: [numbers => numbers.delivered, 1],
  lag: [numbers => numbers.lag, 0.05],
  memory: [numbers => numbers.grown, 4 * 2 ** 20],
};

function lane(name, numbers) {
  if (!lanes.has(name)) {
    const section = by("lane").content.firstElementChild.cloneNode(true);
    section.id = `lane-${name}`;
    section.querySelector("h2").textContent = numbers.name;
    section.querySelector("code").textContent = numbers.code;
    by("lanes").append(section);
    lanes.set(name, section);
  }
  return lanes.get(name);
}

function say(node, [text, value]) {
  // Numbers that change all the time are not read aloud; another sentence is.
  if (node.dataset.text !== text) {
    const [before, after] = text.split("{}");
    node.replaceChildren(before);
    if (after !== undefined) {
      node.append(Object.assign(document.createElement("b"), {ariaLive: "off"}), after);
    }
    node.dataset.text = text;
  }
  if (node.firstElementChild) tell(node.firstElementChild, value);
}

function chart(svg, name, key, now, top) {
  const x = time => 240 - (now - time) / WINDOW * 240, y = value => 38 - Math.max(0, value) / top * 35;
  const points = samples.map(({time, lanes: all}) => [time, CHARTS[key][0](all[name])]).filter(([, value]) => value != null)
    .map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`);
  if (!points.length) return;
  const tunnels = samples.filter(({stalled}) => stalled != null).map(({time}) => `M${x(time).toFixed(1)},0V40`).join("");
  svg.setAttribute("viewBox", "0 0 240 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.innerHTML = `<path class="dark" d="${tunnels}"/><path class="area" d="M${points[0].split(",")[0]},40L${points.join("L")}V40Z"/>`
    + `<path class="line" d="M${points.join("L")}"/>`;
}

function draw() {
  drawn = false;
  const sample = samples[samples.length - 1];
  if (!sample) return;
  const stalled = sample.stalled != null;
  for (const [name, numbers] of Object.entries(sample.lanes)) {
    const section = lane(name, numbers);
    const figure = key => section.querySelector(`.${key} b`);
    tell(figure("delivered"), integer.format(numbers.delivered));
    tell(figure("lag"), numbers.lag == null ? "–" : seconds(numbers.lag));
    tell(figure("memory"), numbers.memory == null ? "unknown" : `${mebibytes(numbers.memory)} MiB`);
    tell(section.querySelector(".memory i"), numbers.grown > 2 ** 18 ? `+${mebibytes(numbers.grown)} MiB` : "");
    section.dataset.tone = numbers.says[2];
    say(section.querySelector(".says"), numbers.says);
  }
  for (const [key, [value, least]] of Object.entries(CHARTS)) {
    const top = Math.max(least, ...samples.flatMap(({lanes: all}) => Object.values(all).map(value)).filter(Number.isFinite));
    for (const [name, section] of lanes) chart(section.querySelector(`.${key} svg`), name, key, sample.time, top);
  }
  tell(button, stalled ? "It comes out of the tunnel" : "A client drives into a tunnel");
  button.dataset.stalled = stalled;
  tell(by("state"), stalled ? `${sample.stalled.toFixed(0)} s in the tunnel: it reads nothing.`
    : sample.notice || (sample.auto ? "It soon does so by itself. Press to decide yourself." : "It stops reading in each lane."));
  tell(by("size"), sample.size % 1024 ? `${integer.format(sample.size)} bytes` : `${sample.size / 1024} KiB`);
  for (const key of ["clients", "rate", "loop", "version", "longest", "most"]) tell(by(key), String(sample[key]));
  tell(by("policy"), POLICIES[sample.policy]);
  tell(by("recovery"), sample.recovery);
  by("recovery").hidden = !sample.recovery;
  for (const input of controls.elements) if (input.type === "radio") input.checked = input.value === String(sample[input.name]);
}

function show(text) {
  by("status").textContent = text;
  const live = text === "Live";
  document.body.toggleAttribute("data-stale", !live);
  for (const element of [button, ...controls.querySelectorAll("input")]) element.disabled = !live;
}

function receive({data}) {
  const message = JSON.parse(data);
  if (message.error) {
    tell(by("state"), message.error);
    return;
  }
  if (document.body.hasAttribute("data-stale")) show("Live");
  samples.push(message);
  samples = samples.filter(({time}) => time > message.time - WINDOW);
  if (!drawn) requestAnimationFrame(draw);
  drawn = true;
}

function connect() {
  socket = new WebSocket(`ws://${location.host}/control`);
  socket.onopen = () => {
    samples = []; // the server sends the last samples again, and may be another one
    show("The clients are connecting");
  };
  socket.onmessage = receive;
  socket.onclose = () => {
    show("Connection lost. Trying again");
    setTimeout(connect, AGAIN);
  };
}

const command = (name, value) => socket.send(JSON.stringify({do: name, value}));
button.addEventListener("click", () => command("tunnel", button.dataset.stalled !== "true"));
controls.addEventListener("submit", event => event.preventDefault());
controls.addEventListener("change", ({target}) => command(target.name, target.name === "rate" ? Number(target.value) : target.value));
show("Connecting");
connect();
