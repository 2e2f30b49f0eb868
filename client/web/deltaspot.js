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
/** Time in which a server must be ready, and in which one that has audio to judge must say something. */
const PATIENCE_MS = 10_000;
const LOOK_MS = 1_000;
/** A timer that shall wait longer waits 1 ms. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Fields of messages that are stream time. */
const TIMES = ["at_s", "start_s", "end_s"];
/** How far two reckonings of one token's time may lie apart, in tokens; a sample is twice as long. */
const SLACK = 0.001;

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

  /** Forget what ends `replay` samples before `sample`; return the messages among it. */
  acknowledge(sample, replay) {
    this.acknowledged = Math.max(this.acknowledged, Math.min(sample, this.end));
    let drop = 0;
    while (drop < this.cursor && drop + 1 < this.items.length && this.items[drop + 1].start <= this.acknowledged - replay) drop++;
    this.cursor -= drop;
    return this.items.splice(0, drop).flatMap(({ data }) => (typeof data === "string" ? [data] : []));
  }

  /** Forget the first message like this one; return whether there was one. */
  drop(message) {
    const place = this.items.findIndex(({ data }) => data === message);
    if (place < 0) return false;
    this.items.splice(place, 1);
    if (place < this.cursor) this.cursor--;
    return true;
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
    this.begin = { ...this.configuration }; // what held where the outbox begins
    this.ready = this.totals = this.failure = null;
    this.heartbeatMs = this.configuration.heartbeat_ms ?? 1_000;
    this.lost = this.allowed = this.pumpedAt = 0;
    this.outbox = new Outbox();
    this.retryMs = retrySeconds * 1_000;
    this.ticket = ticket;
    this.checkpoint = null;
    this.origin = 0; // where the server's stream begins in ours
    this.told = -1; // sample up to which servers before told everything, if this one does not know
    this.detections = 0; // that were told
    this.scoredS = 0; // time of the newest scores that were told
    this.troubleSince = 0;
    this.readyAt = this.heardAt = 0;
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

  /** Let go at once, of an interrupted stream, too: nothing more is told, and `finish` fails unless all was judged. */
  abandon() {
    if (this.totals || this.failure) return;
    this.finished = true;
    this.failure = new SpotterError("this stream was abandoned");
    this.hangUp();
    this.end();
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
    if (this.failure) throw this.failure; // abandoned meanwhile
    const socket = new WebSocket(url);
    const hello = { ...this.begin };
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
        this.hangUp();
      }, PATIENCE_MS);
      socket.onerror = () => reject(this.reason(0)); // all that Node tells of a connection that never was
      socket.onclose = ({ code, reason }) => reject(this.reason(code, reason));
    }).finally(() => clearTimeout(late));
    if (this.failure) throw this.failure; // abandoned by whoever was told of `ready`
    this.readyAt = Date.now();
    this.idle = setInterval(() => socket.send('{"type":"keepalive"}'), Math.min((this.ready.limits.idle_s * 1_000) / 3, LONGEST_TIMER_MS));
    this.looking = setInterval(() => this.look(), LOOK_MS);
    socket.onclose = ({ code, reason }) => this.closed(code, reason);
    this.pump();
  }

  /** Leave a connection that is dead, though nobody said so: a browser cannot ping. */
  look() {
    const now = Date.now();
    if (!this.overdue && !this.finished) this.heardAt = now;
    if (now - this.heardAt > PATIENCE_MS + 2 * this.heartbeatMs) this.closed(0, "the server says nothing any more");
  }

  /** Whether more audio is unacknowledged than may be between two heartbeats. */
  get overdue() {
    return this.outbox.end - this.outbox.acknowledged >= this.window(0);
  }

  /** Close the connection, and listen to it no longer. */
  hangUp() {
    clearInterval(this.idle);
    clearInterval(this.looking);
    clearTimeout(this.later);
    Object.assign(this.socket, { onopen: null, onmessage: null, onerror: null, onclose: null });
    this.socket.close();
  }

  receive(message) {
    this.heardAt = Date.now();
    if (message.checkpoint) {
      const sample = this.acknowledge(message.checkpoint);
      this.pump();
      if (message.type === "detection" && sample <= this.told) return;
    }
    for (const time of TIMES) if (time in message) message[time] += this.origin / this.configuration.sample_rate;
    if (message.type === "marker" && !this.outbox.drop(JSON.stringify({ type: "marker", id: message.id }))) return;
    if (message.type === "scores" && !this.cut(message)) return;
    if (message.type === "detection") this.detections++;
    if (message.type === "error") this.error = message;
    else if (message.type === "ready") {
      this.ready = message;
      this.opened();
    } else if (message.type === "closed" && message.reason === "normal") {
      const audio_s = this.outbox.end / this.configuration.sample_rate;
      this.totals = Object.assign(message.totals, { audio_s, detections: this.detections });
    }
    this.tell(message.type, message);
  }

  /** Leave the scores after those told so far, as a connection after a break judges some tokens again; return whether there are any. */
  cut(scores) {
    const rows = Math.ceil((scores.at_s - this.scoredS) / scores.hop_s - SLACK);
    if (rows <= 0) return false;
    this.scoredS = scores.at_s;
    scores.posteriors = scores.posteriors.slice(-rows);
    return true;
  }

  /** Forget what no server needs any more; return the sample of our stream up to which all was judged. */
  acknowledge(checkpoint) {
    const { outbox, origin, ready } = this;
    const before = outbox.acknowledged;
    this.checkpoint = checkpoint;
    for (const message of outbox.acknowledge(origin + checkpoint.sample, ready.replay_samples).map((text) => JSON.parse(text))) {
      if (message.type === "configure") this.begin = message;
    }
    if (outbox.acknowledged > before) this.troubleSince = 0;
    return origin + checkpoint.sample;
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
    this.hangUp();
    const reason = this.reason(code, text || "the connection broke");
    if (this.totals) this.end();
    else if (FINAL.has(code)) this.fail(reason);
    else {
      if (Date.now() - this.readyAt > LONGEST_PAUSE_MS && !this.overdue) this.troubleSince = 0; // it was a good one
      this.reopen(reason, 0);
    }
  }

  fail(error) {
    this.failure = error;
    this.end();
    this.tell("failed", error);
  }

  async reopen(reason, attempt) {
    if (this.failure) return; // abandoned
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
