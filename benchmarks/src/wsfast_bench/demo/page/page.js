"use strict";

// What is shown comes through Channels of the server, over a WebSocket at /control: a `sample` twice a second, a `tick`
// for each tick, the `state` of the settings after each command, an `error` for a command that cannot be done, and
// a `notice`. Commands go the other way.

const KEPT = 122; // samples
const AGAIN = 1000; // milliseconds until the next attempt to connect

const figures = Object.fromEntries([...document.querySelectorAll("[data-figure]")].map(node => [node.dataset.figure, node]));
const controls = document.getElementById("controls");
const status = document.getElementById("status");
const notice = document.getElementById("notice");
const rows = new Map(); // of the ticker, by symbol
const pending = new Map(); // ticks that are not shown yet, by symbol
let samples = [];
let socket = null;
let noticed = 0;

const integer = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const short = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
const ms = value => value.toFixed(value < 10 ? 2 : 1);
const bytes = value => {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${units[unit]}`;
};
const mib = value => `${+(value / 2 ** 20).toFixed(2)} MiB`;

const chart = (id, format, ...series) => new Chart(document.getElementById(id), series, format);
const charts = [
  chart("calls", value => `${+value.toFixed(2)}`, ...["websockets", "wsfast", "channel"].map(name => ({name, of: sample => sample.calls[name]}))),
  chart("deliveries", value => short.format(value), {name: "wsfast", of: sample => sample.deliveries}),
  chart("waiting", value => `${+value.toFixed(2)} MiB`, {name: "websockets", of: sample => sample.waiting.bytes / 2 ** 20}),
  chart("memory", value => `${+value.toFixed(1)} MiB`, {name: "channel", of: sample => sample.memory && sample.memory / 2 ** 20}),
  chart("losses", value => short.format(value), ...["dropped", "conflated", "disconnected"].map(name => ({name, of: sample => sample[name]}))),
];

function tell(name, text) {
  if (figures[name].textContent !== text) figures[name].textContent = text;
}

function showState(state) {
  for (const name of ["clients", "reading", "stalled", "waking", "connecting"]) tell(name, integer.format(state[name]));
  for (const name of ["waking", "connecting"]) figures[name].parentElement.hidden = !state[name];
  for (const name of ["method", "policy"]) {
    for (const input of controls.elements[name]) input.checked = input.value === state[name];
  }
  for (const name of ["rate", "size"]) {
    const select = controls.elements[name];
    const value = String(state[name]);
    if (![...select.options].some(option => option.value === value)) {
      select.add(new Option(name === "rate" ? `${value} per second` : `${value} bytes`, value));
    }
    if (select.value !== value) select.value = value;
  }
}

function showSample(sample) {
  showState(sample);
  tell("ticks", integer.format(sample.ticks));
  for (const [name, median] of Object.entries(sample.medians)) {
    tell(`median-${name}`, median == null ? "–" : `${ms(median)} ms`);
    if (name !== "websockets") {
      const known = median && sample.medians.websockets;
      tell(`ratio-${name}`, known ? `${(sample.medians.websockets / median).toFixed(2)}×` : "");
    }
  }
  tell("deliveries", integer.format(sample.deliveries));
  const {messages, bytes: size, seconds, behind} = sample.waiting;
  tell("waiting", bytes(size));
  tell("lag", sample.stalled + sample.waking === 0 ? "" :
    messages ? `${integer.format(messages)} messages, ${seconds.toFixed(0)} s old` : `${integer.format(behind)} ticks behind`);
  tell("memory", sample.memory == null ? "unknown" : mib(sample.memory));
  for (const name of ["dropped", "conflated", "disconnected"]) tell(name, integer.format(sample[name]));
}

function showTicks() {
  for (const [symbol, tick] of pending) {
    let row = rows.get(symbol);
    if (!row) {
      row = document.createElement("tr");
      for (let cell = 0; cell < 4; cell += 1) row.insertCell();
      row.cells[0].textContent = symbol;
      rows.set(symbol, row);
      const body = document.querySelector("#ticker tbody");
      body.append(...[...rows.entries()].sort(([one], [other]) => (one < other ? -1 : 1)).map(([, each]) => each));
    }
    const [, price, size, seq] = row.cells;
    if (row.price !== undefined) {
      const up = tick.price >= row.price;
      price.className = up ? "up" : "down";
      price.textContent = `${up ? "▲" : "▼"} ${tick.price.toFixed(tick.price < 10 ? 4 : 2)}`;
    } else {
      price.textContent = tick.price.toFixed(tick.price < 10 ? 4 : 2);
    }
    row.price = tick.price;
    size.textContent = integer.format(tick.size);
    seq.textContent = integer.format(tick.seq);
  }
  pending.clear();
}

let planned = 0;
function plan(what) {
  // Messages that come together, as after the tab was asleep, are drawn once.
  planned |= what;
  if (planned === what) {
    requestAnimationFrame(() => {
      if (planned & 1 && samples.length) {
        showSample(samples[samples.length - 1]);
        for (const each of charts) each.show(samples);
      }
      if (planned & 2) showTicks();
      planned = 0;
    });
  }
}

function showNotice(text) {
  notice.textContent = text;
  notice.hidden = false;
  clearTimeout(noticed);
  noticed = setTimeout(() => { notice.hidden = true; }, 8000);
}

function showStatus(state, text) {
  status.dataset.state = state;
  status.textContent = text;
  const connected = state === "connected";
  document.body.toggleAttribute("data-stale", !connected);
  for (const element of controls.elements) {
    if (element.tagName !== "FIELDSET") element.disabled = !connected;
  }
}

function receive({data}) {
  const message = JSON.parse(data);
  if (message.type === "sample") {
    samples.push(message);
    samples = samples.slice(-KEPT);
    plan(1);
  } else if (message.type === "tick") {
    pending.set(message.symbol, message);
    plan(2);
  } else if (message.type === "state") {
    showState(message);
  } else {
    showNotice(message.text);
    if (message.type === "error" && samples.length) showState(samples[samples.length - 1]);
  }
}

function connect() {
  socket = new WebSocket(`ws://${location.host}/control`);
  socket.onopen = () => {
    samples = []; // the server tells the last minute again, and may be another one
    showStatus("connected", "Connected");
  };
  socket.onmessage = receive;
  socket.onclose = () => {
    showStatus("lost", "Connection lost, trying again");
    setTimeout(connect, AGAIN);
  };
}

function command(name, key, value) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({do: name, [key]: value}));
}

controls.addEventListener("submit", event => event.preventDefault());
controls.addEventListener("click", ({target}) => {
  if (target.dataset.do) command(target.dataset.do, "count", Number(target.dataset.count));
});
controls.addEventListener("change", ({target}) => {
  if (target.type === "radio") command(target.name, "name", target.value);
  else command(target.name, "value", Number(target.value));
});

showStatus("connecting", "Connecting");
connect();
