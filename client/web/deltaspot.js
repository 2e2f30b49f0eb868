/**
 * A stream to a deltaspot server that outlives its connection. No dependencies, no build; types in deltaspot.d.ts.
 *
 *     const spotter = await connect("ws://127.0.0.1:8770", { keywords: { yes: {} } });
 *     spotter.addEventListener("detection", ({ detail }) => console.log(detail.keyword, detail.score));
 *     spotter.send(int16Samples);
 *     await spotter.finish();
 *
 * What the server has not acknowledged is kept and sent again with the next connection, to whichever server answers.
 */

/** Audio that may be on its way, and that is kept in all; longer if acknowledgements, which come with heartbeats, are further apart. */
const IN_FLIGHT_S = 4;
const BACKLOG_S = 60;
/** Audio that is kept, acknowledged and sent in one piece. */
const PIECE_S = 0.25;
/** Audio that may go at once, whatever the server's `limits.speed`. */
const AHEAD_S = 0.5;
const LONGEST_PAUSE_MS = 5_000;
/** Time in which a server must be ready. */
const PATIENCE_MS = 10_000;

/** Fields of messages that are stream time. */
const TIMES = ["at_s", "start_s", "end_s"];

/** Close codes after which trying again does not help; see service/codes.py. */
const FINAL = new Set([4400, 4401, 4403, 4408, 4413, 4415, 4429]);

/** The server ended the stream, or there is none. */
export class SpotterError extends Error {
  constructor(message, code = 0, field = null) {
    super(message);
    this.name = "SpotterError";
    this.code = code;
    this.field = field;
  }
}

/** Open a stream; resolves once the server is ready for audio. */
export async function connect(url, { retrySeconds = 60, ticket = null, ...configure } = {}) {
  const spotter = new Spotter(streamUrl(url), configure, retrySeconds, ticket);
  await spotter.open();
  return spotter;
}

/** Any way to name a server -> its stream's address; a path that ends in "/" is where a proxy has the server. */
export function streamUrl(url) {
  const parsed = new URL(url, globalThis.location?.href);
  parsed.protocol = parsed.protocol.replace("http", "ws");
  parsed.pathname = parsed.pathname.replace(/\/+$/, "/v1/stream");
  return parsed.href;
}

/** Audio in frames that a server takes, which may be another one each time; a message is left whole. */
function* fitting(data, bytes) {
  const most = typeof data === "string" ? data.length : Math.floor(bytes / data.BYTES_PER_ELEMENT);
  for (let at = 0; at < data.length; at += most) yield data.slice(at, at + most);
}

/** Audio and messages in order, from the oldest that a server may still need. Positions are samples. */
export class Outbox {
  constructor() {
    this.items = [];
    this.cursor = this.end = this.sent = this.acknowledged = 0;
  }

  add(data) {
    this.items.push({ start: this.end, data });
    if (typeof data !== "string") this.end += data.length;
  }

  acknowledge(sample, replay) {
    const news = sample > this.acknowledged;
    this.acknowledged = Math.max(this.acknowledged, Math.min(sample, this.end));
    let drop = 0;
    while (drop < this.cursor && drop + 1 < this.items.length && this.items[drop + 1].start <= this.acknowledged - replay) drop++;
    this.items.splice(0, drop);
    this.cursor -= drop;
    return news;
  }

  rewind() {
    this.cursor = 0;
    this.sent = this.items.length ? this.items[0].start : this.end;
    return this.sent;
  }

  *take(window) {
    while (this.cursor < this.items.length && this.sent - this.acknowledged < window) {
      const { start, data } = this.items[this.cursor++];
      if (typeof data !== "string") this.sent = start + data.length;
      yield data;
    }
  }
}

/** One stream; made by `connect`. Events have the server's message as `detail`, `type` is the message's. */
export class Spotter extends EventTarget {
  constructor(url, configure, retrySeconds, ticket) {
    super();
    if ((configure.channels ?? 1) !== 1) throw new SpotterError("channels: this module sends one; mix them first", 0, "channels");
    this.url = url;
    this.configuration = { type: "configure", protocol: 1, sample_rate: 16_000, encoding: "s16le", ...configure };
    this.ready = this.totals = this.failure = null;
    this.heartbeatMs = this.configuration.heartbeat_ms ?? 1_000;
    this.lost = this.allowed = this.pumpedAt = 0;
    this.outbox = new Outbox();
    this.retryMs = retrySeconds * 1_000;
    this.ticket = ticket;
    this.checkpoint = null;
    this.origin = 0; // where the server's stream begins in ours
    this.told = -1; // sample up to which servers before told everything, if this one does not know
    this.asked = new Map(); // marker -> how often it is still to come back
    this.troubleSince = 0;
    this.finished = false;
    this.ended = new Promise((resolve) => (this.end = resolve));
  }

  /** Send a copy of samples (Int16Array at `sample_rate`). Returns false, and counts, if a minute is waiting already. Throws after `finish`. */
  send(samples) {
    this.unfinished();
    if (this.outbox.end - this.outbox.acknowledged > this.window(BACKLOG_S)) {
      this.lost += samples.length;
      return false;
    }
    const most = Math.floor(PIECE_S * this.configuration.sample_rate);
    for (let at = 0; at < samples.length; at += most) this.outbox.add(samples.slice(at, at + most));
    this.pump();
    return true;
  }

  /** Change keywords, scores, point or heartbeat from here on. */
  configure(changes) {
    Object.assign(this.configuration, changes);
    this.heartbeatMs = Math.max(this.heartbeatMs, changes.heartbeat_ms ?? 0);
    this.say(this.configuration);
  }

  marker(id) {
    this.asked.set(id, (this.asked.get(id) ?? 0) + 1);
    this.say({ type: "marker", id });
  }

  flush() {
    this.say({ type: "flush" });
  }

  reset() {
    this.say({ type: "reset" });
  }

  /** Not kept for another connection: its server would not know the detection. */
  feedback(detection, correct) {
    if (this.live) this.socket.send(JSON.stringify({ type: "feedback", detection, correct }));
  }

  /** No more audio; resolves to the totals once everything has been judged. */
  async finish() {
    if (!this.finished) this.say({ type: "close" });
    this.finished = true;
    await this.ended;
    if (this.failure) throw this.failure;
    return this.totals;
  }

  say(message) {
    this.unfinished();
    this.outbox.add(JSON.stringify(message));
    this.pump();
  }

  unfinished() {
    if (this.finished) throw new SpotterError("this stream is finished; connect() begins another one");
  }

  /** Whether the server listens. */
  get live() {
    return Boolean(this.ready) && this.socket.readyState === WebSocket.OPEN;
  }

  /** Send what there is, no faster than the server allows. */
  pump() {
    if (!this.live) return;
    const rate = this.configuration.sample_rate;
    const perMs = (rate * this.ready.limits.speed) / 1_000;
    const now = performance.now();
    this.allowed = Math.min(AHEAD_S * rate, this.allowed + (now - this.pumpedAt) * perMs);
    this.pumpedAt = now;
    clearTimeout(this.later);
    for (const data of this.allowed < 0 ? [] : this.outbox.take(this.window(IN_FLIGHT_S))) {
      for (const frame of fitting(data, this.ready.limits.frame_bytes)) this.socket.send(frame);
      if (typeof data !== "string") this.allowed -= data.length;
      if (this.allowed < 0) break;
    }
    if (this.allowed < 0) this.later = setTimeout(() => this.pump(), -this.allowed / perMs);
  }

  /** Samples of at least `seconds`, and of two heartbeats, the longest that were asked for: one may still be due. */
  window(seconds) {
    return Math.max(seconds, (2 * this.heartbeatMs) / 1_000) * this.configuration.sample_rate;
  }

  async open() {
    const url = new URL(this.url);
    if (this.ticket) url.searchParams.set("ticket", await this.ticket());
    const socket = new WebSocket(url);
    const hello = { ...this.configuration };
    const sample = this.outbox.rewind();
    if (this.checkpoint) hello.resume = { token: this.checkpoint.token, sample: sample - this.origin };
    else this.origin = sample;
    this.ready = this.error = null;
    this.socket = socket;
    socket.onopen = () => socket.send(JSON.stringify(hello));
    socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    let late;
    await new Promise((resolve, reject) => {
      this.opened = resolve;
      late = setTimeout(() => {
        reject(this.reason(0, "the server says nothing"));
        socket.close();
      }, PATIENCE_MS);
      socket.onerror = () => reject(this.reason(0)); // all that Node tells of a connection that never was
      socket.onclose = ({ code, reason }) => reject(this.reason(code, reason));
    }).finally(() => clearTimeout(late));
    const idle = setInterval(() => socket.send('{"type":"keepalive"}'), (this.ready.limits.idle_s * 1_000) / 3);
    socket.onclose = ({ code, reason }) => {
      clearInterval(idle);
      this.closed(code, reason);
    };
    this.pump();
  }

  receive(message) {
    if (message.checkpoint) {
      this.checkpoint = message.checkpoint;
      const sample = this.origin + message.checkpoint.sample;
      if (this.outbox.acknowledge(sample, this.ready.replay_samples)) this.troubleSince = 0;
      this.pump();
      if (message.type === "detection" && sample <= this.told) return;
    }
    for (const time of TIMES) if (time in message) message[time] += this.origin / this.configuration.sample_rate;
    if (message.type === "marker" && !this.answered(message.id)) return;
    if (message.type === "error") this.error = message;
    else if (message.type === "ready") {
      this.ready = message;
      this.opened();
    } else if (message.type === "closed" && message.reason === "normal") this.totals = message.totals;
    this.tell(message.type, message);
  }

  /** Note that a marker came back; false if it was asked again after a reconnection, and told before. */
  answered(id) {
    const left = this.asked.get(id) ?? 0;
    if (left > 1) this.asked.set(id, left - 1);
    else this.asked.delete(id);
    return left > 0;
  }

  /** No server goes on from the checkpoint, one of another version: to the next, what is kept is all of a stream. */
  beginAnew() {
    this.told = Math.max(this.told, this.origin + (this.checkpoint?.sample ?? -1));
    this.checkpoint = null;
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  reason(code, text) {
    const { message = text || "no server answers", field = null } = this.error ?? {};
    return new SpotterError(message, code, field);
  }

  closed(code, text) {
    const reason = this.reason(code, text || "the connection broke");
    if (this.totals) this.end();
    else if (FINAL.has(code)) this.fail(reason);
    else this.reopen(reason, 0);
  }

  fail(error) {
    this.failure = error;
    this.end();
    this.tell("failed", error);
  }

  async reopen(reason, attempt) {
    this.troubleSince ||= Date.now();
    if (Date.now() - this.troubleSince > this.retryMs) return this.fail(reason);
    const pause = Math.min(100 * 2 ** attempt, LONGEST_PAUSE_MS) * (0.5 + Math.random() / 2);
    this.tell("interrupted", { reason: reason.message, retrySeconds: pause / 1_000 });
    await new Promise((resolve) => setTimeout(resolve, pause));
    try {
      await this.open();
    } catch (error) {
      if (error.field === "resume.token") this.beginAnew();
      else if (FINAL.has(error.code)) return this.fail(error);
      this.reopen(error, attempt + 1);
    }
  }
}
