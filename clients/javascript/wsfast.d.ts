/** Positions of topics, as [epoch, offset]. */
export type Positions = Record<string, [epoch: string, offset: number]>;

/** A message. The payload of a Text message is a string, that of a Binary message is a Uint8Array. */
export interface Message {
  topic: string;
  offset: number;
  payload: string | Uint8Array;
}

export interface Backoff {
  /** Milliseconds. An attempt is made after a random time below min(cap, base * 2 ** attempts). Default: 500. */
  base?: number;
  /** Milliseconds. Default: 30000. */
  cap?: number;
  /** Milliseconds: the least bound after the close codes 1012 and 1013. Default: 10000. */
  busy?: number;
  /** Milliseconds after which a connection counts as good, so that the back-off begins anew. Default: 5000. */
  stable?: number;
}

export interface Heartbeat {
  /** Milliseconds without a message after which a ping is sent. Default: 20000. */
  interval?: number;
  /** Milliseconds to wait for anything after a ping, and for a connection to open. Default: 10000. */
  timeout?: number;
}

export interface Options {
  /** Subprotocols. */
  protocols?: string | string[];
  /** The class to use. Default: the global WebSocket; Node 20 has none, and the class of the package ws fits. */
  WebSocket?: unknown;
  backoff?: Backoff;
  heartbeat?: Heartbeat;
  /** Messages that may wait in an async iterator. The oldest is dropped first, and reported as a gap. Default: 1000. */
  queue?: number;
  /** Returns a number from 0 to 1. Default: Math.random. */
  random?: () => number;
  /** Whether to connect again after a close code. Default: not after 1008 and 4400 to 4499. */
  reconnects?: (code: number) => boolean;
}

export interface Events {
  /** A connection is open. */
  open: { url: string };
  /** A connection has ended. 4000: this client gave it up, because the other end did not answer. */
  close: { code: number; reason: string };
  /** The next attempt is made after `delay` milliseconds, which was drawn below `bound`. */
  wait: { delay: number; bound: number };
  /**
   * A topic is subscribed to, at a position. If `recovered` is true, all messages since the last connection follow. If
   * it is false and `first` is false as well, messages may be missing: load the state again.
   */
  subscribed: { topic: string; epoch: string; offset: number; recovered: boolean; first: boolean };
  /** The messages with the offsets `first` to `last` are missing. `subscription` is given if its own queue was full. */
  gap: { topic: string; first: number; last: number; subscription?: Subscription };
  /** The server has refused a request, or some topics of it. */
  error: { error: string; topics: string[] };
  /** A message that is not one of a topic, for example one that was sent to a user. */
  message: string | ArrayBuffer;
  /** The client is closed, by `close()` or by a close code after which it does not connect again. */
  end: { code: number; reason: string };
}

/** One use of a topic. Without a callback, it is an async iterator. */
export interface Subscription extends AsyncIterable<Message> {
  readonly topic: string;
  readonly active: boolean;
  /** Messages dropped because the iteration did not keep up. */
  readonly dropped: number;
  unsubscribe(): void;
}

/** A connection that is opened again whenever it ends, with subscriptions that outlive it. */
export class Client {
  constructor(url: string | URL, options?: Options);
  readonly url: string | URL;
  readonly connected: boolean;
  readonly closed: boolean;
  /** Attempts to connect again since a connection was last good. */
  readonly attempts: number;
  /** Messages that came twice and were dropped. */
  readonly duplicates: number;
  readonly positions: Positions;
  /** Subscribes to a topic. With several subscriptions to one topic, each gets the messages that come from then on. */
  subscribe(topic: string, callback: (message: Message) => void): Subscription;
  subscribe(topic: string): Subscription;
  /** Calls a function at an event. Returns a function that stops this. */
  on<Name extends keyof Events>(event: Name, callback: (value: Events[Name]) => void): () => void;
  /** Ends the connection, all subscriptions and all timers. The code is 1000 or 3000 to 4999. */
  close(code?: number, reason?: string): void;
}
