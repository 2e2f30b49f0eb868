/** Words of one's own on the page: say one three times, keep it in this browser, take it along in the next stream. */

import { enroll, Takes } from "./enroll.js";
import { keep, kept } from "./kept.js";
import { openMicrophone } from "./sources.js";

const TIMES = 3;
const MOST = 8;
const PATIENCE_MS = 8_000;
const FORMAT = "deltaspot-keyword-3";
const KEPT = "keywords";
/** What a file, or a word that is said, does when there are as many as streams take. */
const FULL = `finds no room: ${MOST} words are kept here. Forget one of them first.`;
const AGAIN = "Say it three times here again, or give its recordings to deltaspot enroll.";

const $ = (id) => document.getElementById(id);

export class OwnWords {
  /** @param {{server: URL, status: Function, level: Function, key: () => string, before: Function, after: Function, forgotten: Function}} page */
  constructor(page) {
    this.page = page;
    const left = kept(KEPT); // by an earlier visit, or by who knows
    this.words = Array.isArray(left) ? left.filter((word) => word?.name) : [];
    this.cancel = this.fingerprint = null;
    $("teach").onsubmit = (event) => {
      event.preventDefault();
      if (!this.stop()) this.teach($("word").value.trim());
    };
    this.show();
  }

  /** Give up what is being recorded; return whether anything was. */
  stop() {
    this.cancel?.(new Error("Stopped; nothing was kept."));
    return Boolean(this.cancel);
  }

  /** Record a word, have the server make a keyword of it, and listen for it. */
  async teach(name) {
    const { server, before, after, key } = this.page;
    if (this.full(name)) return this.tell(`“${name}” ${FULL}`, true);
    await before();
    try {
      const clips = await this.record(name);
      this.tell(`Making a keyword of “${name}” …`);
      $("say").disabled = true;
      this.add(await enroll(server, name, clips, { key: key() }));
      $("word").value = "";
      this.tell("");
      after(`Say “${name}”.`);
    } catch (error) {
      this.tell(error, true);
    } finally {
      this.progress(null);
    }
  }

  /** The word, said three times into the microphone. */
  async record(name) {
    const { level } = this.page;
    const clips = [];
    const takes = new Takes();
    let source = null;
    let timer = 0;
    try {
      await new Promise((resolve, reject) => {
        this.cancel = reject;
        const next = () => {
          this.progress(clips.length);
          if (clips.length === TIMES) return resolve();
          this.tell(`Say “${name}”: ${clips.length + 1} of ${TIMES}.`);
          clearTimeout(timer);
          timer = setTimeout(() => reject(new Error("Nothing was heard. Come closer to the microphone, and try again.")), PATIENCE_MS);
        };
        const take = (samples) => {
          level(samples);
          const word = clips.length < TIMES ? takes.feed(samples) : null;
          if (word) next(clips.push(word));
        };
        openMicrophone(take, reject).then((opened) => {
          source = opened;
          if (this.cancel === reject) next();
          else source.stop(); // given up while the browser asked
        }, reject);
      });
    } finally {
      clearTimeout(timer);
      source?.stop();
      level(new Int16Array(1));
      this.cancel = null;
    }
    return clips;
  }

  /** Say which model streams get: words are made for one model and no other. */
  fit(fingerprint) {
    this.fingerprint = fingerprint;
    this.show();
  }

  /** Why a word cannot be listened for, and what to do; empty if it can, or if the model is not known. */
  trouble({ weights, fingerprint }) {
    if (!weights) return `was made by an older version. ${AGAIN}`; // which had none
    return this.fingerprint && fingerprint !== this.fingerprint ? `was made for another model. ${AGAIN}` : "";
  }

  /** Those that streams take along. */
  fitting() {
    return this.words.filter((word) => !this.trouble(word));
  }

  /** Whether streams may ask for a word of this name: it is the model's, or is taken along. */
  fits(name) {
    return this.words.every((word) => word.name !== name || !this.trouble(word));
  }

  /** Whether there is no place for a word of this name. */
  full(name) {
    return this.words.length >= MOST && this.words.every((word) => word.name !== name);
  }

  /** Keep a word, in the place of one of the same name. */
  add(word) {
    if (this.full(word.name)) throw new Error(FULL);
    this.words = [...this.words.filter(({ name }) => name !== word.name), word];
    this.keep();
  }

  /** The text of a file of `deltaspot enroll`, or of the page's own -> its word; an error's message is what the file is. */
  adopt(text) {
    const { format, ...word } = parsed(text) ?? {};
    if (format !== FORMAT) throw new Error(/^deltaspot-keyword-/.test(format) ? `was made by another version. ${AGAIN}` : "is no keyword of deltaspot enroll.");
    this.add(word);
    return word;
  }

  forget(gone) {
    this.words = this.words.filter((word) => word !== gone);
    this.keep();
    this.page.forgotten(gone.name);
  }

  keep() {
    keep(KEPT, this.words);
    this.show();
  }

  save(word) {
    const url = URL.createObjectURL(new Blob([`${JSON.stringify({ format: FORMAT, ...word })}\n`], { type: "application/json" }));
    Object.assign(document.createElement("a"), { href: url, download: `${word.name}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  /** Where the page tells everything, and beside the button, which may be far from there. */
  tell(text, bad = false) {
    this.page.status(text, bad);
    $("prompt").textContent = $("status").textContent;
  }

  /** How many of three are recorded; null when nothing goes on. */
  progress(count) {
    $("say").disabled = false;
    $("say").textContent = count === null ? "Say it three times" : "Stop";
    $("takes").hidden = count === null;
    [...$("takes").children].forEach((dot, i) => dot.classList.toggle("done", i < count));
  }

  show() {
    const button = (text, label, act) =>
      Object.assign(document.createElement("button"), { type: "button", textContent: text, ariaLabel: label, onclick: act });
    $("own").replaceChildren(
      ...this.words.map((word) => {
        const item = document.createElement("li");
        const name = Object.assign(document.createElement("b"), { textContent: word.name });
        const trouble = Object.assign(document.createElement("small"), { textContent: this.trouble(word) });
        const save = button("Save", `Save ${word.name} as a file`, () => this.save(word));
        item.append(name, trouble, ...(word.weights ? [save] : []), button("✕", `Forget ${word.name}`, () => this.forget(word)));
        return item;
      }),
    );
  }
}

/** What JSON says; null if it is none. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
