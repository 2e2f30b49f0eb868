/**
 * A keyword of one's own from a few recordings of it: words are cut out of sound, and a server makes a keyword of them.
 *
 *     const takes = new Takes();
 *     recorder.port.onmessage = ({ data }) => { const word = takes.feed(data); if (word) clips.push(word); };
 *     const jarvis = await enroll("http://127.0.0.1:8770", "jarvis", clips);
 *     const spotter = await connect("http://127.0.0.1:8770", { enrolled: [jarvis] });
 */

import { SpotterError, streamUrl } from "./deltaspot.js";

const RATE = 16_000;
/** Root mean square, of int16 values, that a word reaches in the quietest room. */
const FAINTEST = 150;
const ABOVE_ROOM = 4;
/** In blocks: what is kept from before a word, what makes one, what ends it, and how long it may last. */
const LEAD = 10;
const LOUD = 3;
const QUIET = 14;
const LONGEST = 100;

/** Cuts words out of sound: what is louder than the room for a while, with some of the room around it. */
export class Takes {
  constructor() {
    this.blocks = [];
    this.room = null;
    this.loud = this.quiet = 0;
    this.speaking = false;
  }

  /**
   * @param {Int16Array} block 30 ms at 16 kHz
   * @returns {Int16Array | null} a word, once it has ended
   */
  feed(block) {
    const level = Math.sqrt(block.reduce((sum, x) => sum + x * x, 0) / block.length);
    this.room = this.room === null ? level : level < this.room ? (level + this.room) / 2 : this.room * 1.01;
    const loud = level > Math.max(FAINTEST, ABOVE_ROOM * this.room);
    this.loud = loud ? this.loud + 1 : 0;
    this.quiet = loud ? 0 : this.quiet + 1;
    this.blocks.push(block.slice()); // a recorder may use its array again
    if (!this.speaking) {
      this.speaking = this.loud >= LOUD;
      if (!this.speaking) this.blocks = this.blocks.slice(-LEAD - LOUD);
      return null;
    }
    if (this.quiet < QUIET && this.blocks.length < LONGEST) return null;
    const word = joined(this.blocks);
    this.blocks = [];
    this.speaking = false;
    this.loud = 0;
    return word;
  }
}

/**
 * Have a server make a keyword; it keeps nothing.
 *
 * @param {string | URL} url the server, as for `connect`
 * @param {string} name what the keyword is called, in detections
 * @param {(Int16Array | Blob)[]} clips 1 to 10 recordings of it: samples at 16 kHz, or audio files
 * @returns {Promise<import("./deltaspot.js").Enrolled>} what goes into `enrolled`
 */
export async function enroll(url, name, clips, { key = null, ...wishes } = {}) {
  const stream = new URL(streamUrl(url));
  const [, prefix] = /^(.*)\/v1\/stream/.exec(stream.pathname) ?? ["", ""];
  const server = new URL(`${prefix}/v1/enroll`, stream);
  server.protocol = server.protocol.replace("ws", "http");
  const form = new FormData();
  for (const [field, value] of Object.entries({ name, ...wishes })) form.append(field, value);
  clips.forEach((clip, i) => form.append("clips", clip instanceof Int16Array ? wav(clip) : clip, `${i + 1}.wav`));
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(server, { method: "POST", body: form, headers });
  const told = await answer.json().catch(() => null); // a proxy has no JSON
  if (!told) throw new SpotterError(`no deltaspot server answers at ${server}: HTTP ${answer.status}`);
  const { format, ...keyword } = told;
  if (!answer.ok) throw new SpotterError(keyword.message, 0, keyword.field);
  return keyword;
}

/** Samples at 16 kHz as a WAV file. */
export function wav(samples) {
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => head.setUint8(at + i, letter.charCodeAt(0)));
  const number = (at, size, value) => (size === 4 ? head.setUint32(at, value, true) : head.setUint16(at, value, true));
  text(0, "RIFF");
  number(4, 4, 36 + samples.byteLength);
  text(8, "WAVEfmt ");
  [[16, 4, 16], [20, 2, 1], [22, 2, 1], [24, 4, RATE], [28, 4, 2 * RATE], [32, 2, 2], [34, 2, 16]].forEach((field) => number(...field));
  text(36, "data");
  number(40, 4, samples.byteLength);
  return new Blob([head, samples], { type: "audio/wav" });
}

function joined(blocks) {
  const whole = new Int16Array(blocks.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const block of blocks) {
    whole.set(block, at);
    at += block.length;
  }
  return whole;
}
