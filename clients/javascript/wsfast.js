/**
 * A client for servers that use wsfast.session: it reconnects, subscribes again, and gets what it has missed.
 * The protocol is described in docs/reference/protocol.md, the options in wsfast.d.ts. No dependencies.
 */

const DEFAULTS = {
  protocols: [],
  WebSocket: undefined,
  backoff: {}, // base, cap, busy, stable
  heartbeat: {}, // interval, timeout
  queue: 1000,
  random: Math.random,
  reconnects: (code) => code !== 1008 && !(code >= 4400 && code < 4500),
};
const BACKOFF = { base: 500, cap: 30_000, busy: 10_000, stable: 5000 };
const HEARTBEAT = { interval: 20_000, timeout: 10_000 };
const BUSY = new Set([1012, 1013]); // service restart, try again later
const ABANDONED = 4000; // this client gave the connection up: RFC 6455 leaves 4000-4999 to applications

const TOPICS = 50; // per request: servers limit their size
const HELD = 10_000; // messages of a topic that wait for an answer

const text = new TextDecoder();

/** One use of a topic: calls a function for each message, or is an async iterator. */
class Subscription {
  #client;
  #callback;
  #messages = [];
  #waiting = [];

  constructor(client, topic, callback) {
    this.#client = client;
    this.#callback = callback;
    this.topic = topic;
    this.active = true;
    this.dropped = 0;
  }

  unsubscribe() {
    this.#client._leave(this);
  }

  _receive(message) {
    if (this.#callback) {
      guarded(this.#callback, message);
    } else if (this.#waiting.length) {
      this.#waiting.shift()({ value: message, done: false });
    } else {
      this.#messages.push(message);
      if (this.#messages.length > this.#client.options.queue) {
        const { offset } = this.#messages.shift();
        this.dropped += 1;
        this.#client._emit("gap", { topic: this.topic, first: offset, last: offset, subscription: this });
      }
    }
  }

  _end() {
    this.active = false;
    for (const resolve of this.#waiting.splice(0)) resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator]() {
    return {
      next: () => {
        if (this.#callback) return Promise.reject(new TypeError("a subscription with a callback is no iterator"));
        if (this.#messages.length) return Promise.resolve({ value: this.#messages.shift(), done: false });
        if (!this.active) return Promise.resolve({ value: undefined, done: true });
        return new Promise((resolve) => this.#waiting.push(resolve));
      },
      return: () => {
        this.unsubscribe();
        return Promise.resolve({ value: undefined, done: true });
      },
    };
  }
}

/** Calls a function of the application. An exception in it is reported like one in an event listener. */
function guarded(callback, ...values) {
  try {
    callback(...values);
  } catch (error) {
    if (globalThis.reportError) globalThis.reportError(error);
    else console.error(error);
  }
}

function isEnvelope(value) {
  const payload = Array.isArray(value) && value.length === 3 && Number.isInteger(value[1]) && value[2];
  return typeof payload === "string" || payload instanceof Uint8Array;
}

/** A connection that is opened again whenever it ends, with subscriptions that outlive it. */
export class Client {
  duplicates = 0;
  connected = false;
  closed = false;
  attempts = 0; // since a connection was last good for a while
  #topics = new Map(); // name -> {name, epoch, offset, request, held, filtered, subscriptions}
  #listeners = new Map();
  #socket = null;
  #number = 0; // of the last request or ping
  #retry; // timer of the next attempt
  #watch; // timer of the heartbeat, or of what has to happen in time
  #stable; // timer after which the back-off begins anew
  #online = () => this.#retry !== undefined && this.#wait(this.#backoff.base);
  #offline = () => this.connected && this.#ping(); // notices soon whether it is true for this connection

  constructor(url, options = {}) {
    this.url = url;
    this.options = { ...DEFAULTS, ...options };
    this.#backoff = { ...BACKOFF, ...this.options.backoff };
    this.#heartbeat = { ...HEARTBEAT, ...this.options.heartbeat };
    if (!(this.options.WebSocket ?? globalThis.WebSocket)) {
      throw new TypeError("there is no global WebSocket: give one in the option WebSocket, for example that of ws");
    }
    globalThis.addEventListener?.("online", this.#online);
    globalThis.addEventListener?.("offline", this.#offline);
    this.#open();
  }
  #backoff;
  #heartbeat;

  /** Subscribes to a topic. Without a callback, the result is an async iterator of its messages. */
  subscribe(topic, callback) {
    if (this.closed) throw new Error("the client is closed");
    if (typeof topic !== "string") throw new TypeError("a topic is a string");
    const subscription = new Subscription(this, topic, callback);
    const known = this.#topics.get(topic);
    if (known) known.subscriptions.add(subscription);
    else {
      const state = { name: topic, epoch: null, offset: 0, request: 0, held: [], filtered: false };
      state.subscriptions = new Set([subscription]);
      this.#topics.set(topic, state);
      if (this.connected) this.#request([state]);
    }
    return subscription;
  }

  /** Calls a function at an event: open, close, wait, subscribed, gap, error, message, end. Returns a function that stops this. */
  on(event, callback) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(callback);
    return () => this.#listeners.get(event).delete(callback);
  }

  /** The positions of all topics, as [epoch, offset]. */
  get positions() {
    const known = [...this.#topics.values()].filter((state) => state.epoch !== null);
    return Object.fromEntries(known.map((state) => [state.name, [state.epoch, state.offset]]));
  }

  /** Ends the connection, all subscriptions and all timers. */
  close(code = 1000, reason = "") {
    if (!this.closed) this.#finish(code, reason);
  }

  _leave(subscription) {
    if (!subscription.active) return;
    subscription._end();
    const state = this.#topics.get(subscription.topic);
    state.subscriptions.delete(subscription);
    if (!state.subscriptions.size) {
      this.#topics.delete(state.name);
      if (this.connected) this.#send({ unsubscribe: [state.name], id: ++this.#number });
    }
  }

  _emit(event, value) {
    for (const callback of this.#listeners.get(event) ?? []) guarded(callback, value);
  }

  // ---- The connection

  #open() {
    this.#retry = undefined;
    let socket;
    try {
      socket = new (this.options.WebSocket ?? globalThis.WebSocket)(this.url, this.options.protocols);
    } catch (error) {
      this.#finish(ABANDONED, String(error)); // the URL is wrong: trying again changes nothing
      throw error;
    }
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      if (this.#socket !== socket) return;
      this.connected = true;
      this.#stable = setTimeout(() => (this.attempts = 0), this.#backoff.stable);
      this.#listen();
      this.#request([...this.#topics.values()]);
      this._emit("open", { url: this.url });
    };
    socket.onmessage = ({ data }) => {
      if (this.#socket !== socket) return;
      this.#listen();
      try {
        this.#receive(data);
      } catch (error) {
        this.#abandon(`not the session protocol: ${error}`.slice(0, 100));
      }
    };
    socket.onerror = () => {}; // onclose follows
    socket.onclose = ({ code, reason }) => this.#socket === socket && this.#lost(code, String(reason));
    this.#within(() => this.#abandon("it was not opened in time"));
  }

  /** Gives up a connection whose other end does not answer: its close event may come minutes later. */
  #abandon(reason) {
    const socket = this.#socket;
    this.#lost(ABANDONED, reason);
    if (socket.terminate) socket.terminate(); // that of the package ws, whose close() waits for half a minute
    else socket.close(ABANDONED, reason);
  }

  #lost(code, reason) {
    this.#disconnect();
    this._emit("close", { code, reason });
    if (this.closed) return;
    if (!this.options.reconnects(code)) {
      this.#finish(code, reason);
      return;
    }
    const { base, cap, busy } = this.#backoff;
    const bound = Math.min(cap, base * 2 ** this.attempts++);
    this.#wait(BUSY.has(code) ? Math.max(bound, busy) : bound);
  }

  /** Connects after a random time below a bound in milliseconds (full jitter). */
  #wait(bound) {
    clearTimeout(this.#retry);
    const delay = this.options.random() * bound;
    this.#retry = setTimeout(() => this.#open(), delay);
    this._emit("wait", { delay, bound });
  }

  #disconnect() {
    clearTimeout(this.#watch);
    clearTimeout(this.#stable);
    this.#socket = null;
    this.connected = false;
    for (const state of this.#topics.values()) {
      state.held = []; // sent again by the next connection
      state.request = 0;
    }
  }

  #finish(code, reason) {
    const socket = this.#socket;
    this.closed = true;
    clearTimeout(this.#retry);
    this.#disconnect();
    globalThis.removeEventListener?.("online", this.#online);
    globalThis.removeEventListener?.("offline", this.#offline);
    for (const { subscriptions } of this.#topics.values()) for (const one of subscriptions) one._end();
    this.#topics.clear();
    socket?.close(code, reason);
    this._emit("end", { code, reason });
  }

  #within(action) {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(action, this.#heartbeat.timeout);
  }

  #listen() {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => this.#ping(), this.#heartbeat.interval);
  }

  #ping() {
    this.#send({ ping: ++this.#number });
    this.#within(() => this.#abandon("no answer to a ping"));
  }

  // ---- The protocol

  #send(request) {
    this.#socket.send(JSON.stringify(request));
  }

  #request(states) {
    for (let start = 0; start < states.length; start += TOPICS) {
      const subscribe = {};
      const id = ++this.#number;
      for (const state of states.slice(start, start + TOPICS)) {
        state.request = id;
        subscribe[state.name] = state.epoch === null ? null : [state.epoch, state.offset];
      }
      this.#send({ subscribe, id });
    }
  }

  #receive(data) {
    let value = null;
    try {
      if (typeof data === "string") value = JSON.parse(data);
      else {
        const bytes = new Uint8Array(data);
        const size = 2 + ((bytes[0] << 8) | bytes[1]);
        value = [...JSON.parse(text.decode(bytes.subarray(2, size))), bytes.subarray(size)];
      }
    } catch {} // not of the protocol
    if (isEnvelope(value)) this.#message(...value);
    else if (value?.subscribed) for (const name in value.subscribed) this.#subscribed(name, value);
    else if (value?.unsubscribed) for (const name of value.unsubscribed) this.#unsubscribed(name);
    else if (value?.error) this.#refused(value);
    else if (!value?.pong) this._emit("message", data);
  }

  #message(topic, offset, payload) {
    const state = this.#topics.get(topic);
    if (!state || (state.epoch === null && !state.request)) return; // unsubscribed, or refused
    const message = { topic, offset, payload };
    if (!state.request && offset <= state.offset) this.#request([state]); // a new numbering, or a duplicate: ask
    if (!state.request) this.#deliver(state, message);
    else if (state.held.length < HELD) state.held.push(message); // until it is known which epoch they belong to
    else this.#abandon(`no answer to the subscription to ${topic}`); // a server that drops messages has dropped it
  }

  #deliver(state, message) {
    if (message.offset > state.offset + 1) this.#gap(state, message.offset - 1);
    state.offset = message.offset;
    for (const subscription of [...state.subscriptions]) if (subscription.active) subscription._receive(message);
  }

  #gap(state, last) {
    if (!state.filtered) this._emit("gap", { topic: state.name, first: state.offset + 1, last });
  }

  #subscribed(name, { subscribed, id }) {
    const state = this.#topics.get(name);
    if (!state || state.request !== id) return; // the answer to an older request
    const { epoch, offset, recovered } = subscribed[name];
    if (typeof epoch !== "string" || !Number.isInteger(offset)) throw new TypeError("no position");
    const held = state.held;
    const first = state.epoch === null;
    const same = state.epoch === epoch;
    state.request = 0;
    state.held = [];
    state.epoch = epoch;
    state.filtered = !!subscribed[name].filtered; // the server leaves out messages on purpose
    if (!same) state.offset = 0;
    this._emit("subscribed", { topic: name, epoch, offset, recovered, first });
    for (const message of held) {
      if (this.#topics.get(name) !== state) return; // a callback has unsubscribed
      if (same && message.offset <= state.offset) this.duplicates += 1;
      else {
        if (!recovered) state.offset = message.offset - 1; // what is missing was told by `recovered`
        this.#deliver(state, message);
      }
    }
    if (recovered && offset > state.offset) this.#gap(state, offset);
    state.offset = recovered ? Math.max(state.offset, offset) : offset; // all that was held had come before
  }

  #unsubscribed(name) {
    const state = this.#topics.get(name);
    if (state) state.held = []; // those were of the subscription before
  }

  #refused({ error, id, topics = [] }) {
    for (const name of topics) {
      const state = this.#topics.get(name);
      if (state?.request === id) Object.assign(state, { request: 0, held: [] });
    }
    this._emit("error", { error, topics });
  }
}
