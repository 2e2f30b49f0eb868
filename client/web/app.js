/** The page: a source of sound, a stream to the server, and what comes back. */

import { connect } from "./deltaspot.js";
import { LogMel } from "./logmel.js";
import { OwnWords } from "./own.js";
import { openFile, openMicrophone, RATE } from "./sources.js";
import { Timeline } from "./timeline.js";

const LIVE_S = 12;
const LONGEST_VIEW_S = 60;
const KEPT_DETECTIONS = 200;
const FRAME_MS = 30;
const CALM_MS = 500;

const $ = (id) => document.getElementById(id);
/** Where a proxy may have put it under a path. */
const server = new URL(".", document.baseURI);
const timeline = new Timeline({ mel: $("mel"), posteriors: $("posteriors"), work: $("work"), axis: $("axis") });
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** What is going on now, or null: {spotter, source, mel, samples, heardAt}. */
let session = null;
/** What the person chose, kept from one stream to the next. */
const chosen = { keywords: {}, point: undefined };
const own = new OwnWords({
  server,
  status: (text, bad) => status(text instanceof Error ? explained(text) : text, bad),
  level: (samples) => level(decibels(samples)),
  key: () => $("key").value,
  before: () => end(),
  after: (text) => begin(() => text, microphone),
  forgotten: (word) => {
    delete chosen.keywords[word];
    delete timeline.thresholds[word];
    end().then(() => {
      clear(LIVE_S);
      rows(timeline.words.filter((name) => name !== word));
      status(`${word} is forgotten.`);
    });
  },
});

/** Right edge of the picture when nothing goes on, s; when it was drawn, ms. */
let still = 0;
let drawnAt = 0;

// --- streams

async function begin(title, open, seconds = LIVE_S) {
  own.stop();
  await end();
  const mine = { spotter: null, source: null, mel: new LogMel(), samples: 0, heardAt: performance.now() };
  session = mine;
  pressed(true);
  clear(seconds);
  status("Connecting …");
  try {
    mine.spotter = await connect(server, { scores: true, heartbeat_ms: 500, ticket: $("key").value ? ticket : null, enrolled: own.fitting(), ...wishes() });
    if (session === mine) {
      listenTo(mine.spotter);
      mine.source = await open((samples) => take(mine, samples));
    }
    if (session !== mine) return await leave(mine); // given up while the server answered, or the browser asked
    status(title(mine.source));
    return mine;
  } catch (error) {
    if (session !== mine) return null;
    await end();
    const reason = mine.spotter || error.code !== 0 ? error : await refusal(error);
    if (!mine.spotter && (await wantsKey())) askForKey(reason);
    else status(explained(reason), true);
    return null;
  }
}

/** Browsers do not tell a refused WebSocket from one that nobody answers; the server's probe does. */
async function refusal(error) {
  const health = await fetch("readyz").then((answer) => answer.json()).catch(() => null);
  const advice = `It may have no room, or not allow pages of ${location.origin}: try again, or read its log.`;
  return health ? new Error(`The server is there (${health.status}), but refused the stream. ${advice}`) : error;
}

/** Browsers cannot send a key with a WebSocket: it is exchanged for a ticket that is good for a minute. */
async function ticket() {
  const answer = await tickets({ Authorization: `Bearer ${$("key").value}` });
  const { ticket, message } = await answer.json();
  if (!answer.ok) throw new Error(message);
  return ticket;
}

const tickets = (headers) => fetch("v1/tickets", { method: "POST", headers });
const wantsKey = async () => (await tickets({}).catch(() => null))?.status === 401;

function askForKey(error) {
  status($("access").hidden ? "This server wants a key." : explained(error), true);
  $("access").hidden = false;
  $("key").focus();
}

async function end() {
  const mine = session ?? {};
  session = null;
  pressed(false);
  level(-60);
  await leave(mine);
}

/** Let go of a stream's sound and of its connection. */
async function leave({ source, spotter }) {
  source?.stop();
  if (spotter && !spotter.failure) await Promise.race([spotter.finish(), new Promise((done) => setTimeout(done, 2_000))]).catch(() => {});
  return null;
}

/** Send and show a block; return false if the stream has no room for it. A microphone may have one left when all is over. */
function take(mine, samples) {
  if (mine.spotter.finished) return true;
  if (!mine.spotter.send(samples)) return false;
  timeline.addFrames(mine.mel.feed(samples));
  mine.samples += samples.length;
  mine.heardAt = performance.now();
  level(decibels(samples));
  return true;
}

/** A microphone does not wait. */
function microphone(take) {
  return openMicrophone((samples) => take(samples) || status("The server does not keep up; sound is being lost.", true));
}

function listenTo(spotter) {
  const on = (type, act) => spotter.addEventListener(type, ({ detail }) => act(detail));
  configured(spotter.ready);
  on("ready", configured);
  on("scores", (scores) => {
    timeline.addScores(scores, spotter.ready.labels);
    layers(scores.work.length);
  });
  on("detection", (detection) => heard(detection, spotter));
  on("heartbeat", figures);
  on("warning", ({ message }) => status(message, true));
  on("interrupted", ({ reason }) => status(`Interrupted: ${reason}. Trying again; nothing is lost.`, true));
  on("ready", () => session?.source && status("Listening again."));
  on("failed", (error) => {
    end();
    status(explained(error), true);
  });
}

function wishes() {
  const wish = {};
  if (chosen.point) wish.point = chosen.point;
  if (Object.keys(chosen.keywords).length) wish.keywords = chosen.keywords;
  return wish;
}

const sayWishes = later(() => session?.spotter?.finished === false && session.spotter.configure(wishes()), 150);

// --- controls

$("listen").onclick = () => {
  if (session) end().then(() => status("Stopped."));
  else begin(({ name }) => `Listening to ${name}.`, microphone);
};

async function analyse(file) {
  if (file.name.endsWith(".json")) return adopt(file);
  const mine = await begin(({ seconds }) => `Judging ${file.name}, ${seconds.toFixed(1)} s.`, async (take) => {
    const source = await openFile(file, take);
    timeline.seconds = Math.min(Math.max(LIVE_S, source.seconds), LONGEST_VIEW_S);
    return source;
  });
  if (!mine) return;
  await mine.source.done;
  if (session !== mine) return;
  const totals = await mine.spotter.finish().catch(() => null);
  if (session === mine && totals) {
    await end();
    figures({ ...totals, at_s: totals.audio_s, lag_ms: 0 });
    status(`${file.name}: ${totals.audio_s.toFixed(1)} s, ${totals.detections} ${totals.detections === 1 ? "word" : "words"}.`);
    still = totals.audio_s;
  }
}

async function adopt(file) {
  try {
    const word = own.adopt(await file.text());
    const trouble = own.trouble(word);
    status(`${word.name} ${trouble || "is one of your words now."}`, Boolean(trouble));
  } catch ({ message }) {
    status(`${file.name} ${message}`, true);
  }
}

$("file").onchange = ({ target }) => {
  if (target.files[0]) analyse(target.files[0]);
  target.value = "";
};
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  if (event.dataTransfer.files[0]) analyse(event.dataTransfer.files[0]);
});

$("point").onchange = ({ target }) => {
  chosen.point = target.value;
  sayWishes();
};

$("theme").onclick = () => theme(dark() ? "light" : "dark");
const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark";

function theme(name) {
  if (name) {
    document.documentElement.dataset.theme = name;
    localStorage.setItem("theme", name);
  }
  const other = dark() ? "light" : "dark";
  $("theme").textContent = other === "light" ? "☀ Light" : "☾ Dark";
  $("theme").ariaLabel = `Switch to ${other} colours`;
  timeline.readColours();
  redraw();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
theme(localStorage.getItem("theme"));

/** What streams get, or would get: from `ready`, or from `/v1/models` before the first one. */
function configured(model) {
  own.fit(model.fingerprint);
  const fresh = Object.keys(model.keywords).filter((word) => !(word in timeline.thresholds));
  for (const [word, { threshold }] of Object.entries(model.keywords)) timeline.thresholds[word] = threshold;
  if (fresh.length) rows([...timeline.words, ...fresh]);
  const point = chosen.point ?? model.point;
  $("point").disabled = false;
  $("point").replaceChildren(...model.points.map((name) => make("option", { value: name, textContent: name, selected: name === point })));
}

/** Ask what streams would get; a server that wants a key does not tell. */
async function introduce() {
  const answer = await fetch("v1/models");
  const model = answer.ok && (await answer.json()).find(({ streams }) => streams);
  if (model && !session) configured(model);
}

function rows(words) {
  timeline.words = words;
  $("names").replaceChildren();
  $("sliders").replaceChildren($("sliders").firstElementChild);
  words.forEach(row);
  document.documentElement.style.setProperty("--words", words.length);
  redraw();
}

/** A keyword's name, and its slider: to the right is more sensitive. */
function row(word) {
  const { threshold, enabled } = { threshold: timeline.thresholds[word], enabled: true, ...chosen.keywords[word] };
  const name = $("names").appendChild(make("li", { textContent: word }));
  const on = make("input", { type: "checkbox", checked: enabled, ariaLabel: `Detect ${word}` });
  const slider = make("input", { type: "range", id: `sensitivity-${word}`, min: 1, max: 99, value: 100 - 100 * threshold });
  const show = () => {
    const setting = { threshold: (100 - slider.value) / 100, enabled: on.checked };
    name.classList.toggle("off", !on.checked);
    slider.disabled = !on.checked;
    slider.setAttribute("aria-valuetext", `threshold ${setting.threshold.toFixed(2)}`);
    return setting;
  };
  slider.oninput = on.onchange = () => {
    const setting = show();
    chosen.keywords = { ...Object.fromEntries(timeline.words.map((w) => [w, chosen.keywords[w] ?? {}])), [word]: setting };
    timeline.thresholds[word] = on.checked ? setting.threshold : 1;
    sayWishes();
    redraw();
  };
  show();
  const label = make("label", { htmlFor: slider.id, textContent: word });
  $("sliders").append(make("div", {}, on, label, slider));
}

function layers(count) {
  if ($("layers").children.length === count) return;
  const names = ["stem", ...Array.from({ length: count - 2 }, (_, i) => `block ${i + 1}`), "read-out"];
  $("layers").replaceChildren(...names.map((name) => make("li", { textContent: name })));
  document.documentElement.style.setProperty("--layers", count);
}

// --- what is shown

function heard(detection, spotter) {
  timeline.detections.push(detection);
  $("none").hidden = true;
  const { id, keyword, score, start_s, latency_ms } = detection;
  const verdict = (text, label, correct) => {
    const button = make("button", { type: "button", textContent: text, ariaLabel: `${keyword} was ${label}` });
    button.onclick = () => {
      spotter.feedback(id, correct);
      for (const other of button.parentNode.children) other.setAttribute("aria-pressed", other === button);
    };
    return button;
  };
  $("detections").prepend(
    make("li", {},
      make("time", { textContent: `${start_s.toFixed(2)} s` }),
      make("b", { textContent: keyword }),
      make("progress", { max: 1, value: score, ariaLabel: "score" }),
      make("span", { className: "score", textContent: score.toFixed(2) }),
      make("span", { className: "latency", textContent: `${latency_ms.toFixed(0)} ms` }),
      make("span", { className: "verdict" }, verdict("✓", "right", true), verdict("✗", "wrong", false)),
    ),
  );
  while ($("detections").children.length > KEPT_DETECTIONS) $("detections").lastChild.remove();
  const name = $("names").children[timeline.words.indexOf(keyword)];
  name?.classList.add("now");
  setTimeout(() => name?.classList.remove("now"), 1_200);
}

function figures({ at_s, macs_skipped_vs_window, macs_skipped_vs_causal, lag_ms, real_time_factor, cache_bytes }) {
  $("seconds").textContent = `${at_s.toFixed(1)} s`;
  $("window").textContent = percent(macs_skipped_vs_window, 2);
  $("causal").textContent = percent(macs_skipped_vs_causal, 1);
  $("lag").textContent = `${lag_ms.toFixed(0)} ms`;
  if (real_time_factor !== undefined) $("core").textContent = percent(real_time_factor, 2);
  if (cache_bytes !== undefined) $("memory").textContent = `${Math.round(cache_bytes / 1024)} kB`;
}

const percent = (share, digits) => `${(100 * share).toFixed(digits)} %`;

function status(text, bad = false) {
  $("status").textContent = text;
  $("status").parentNode.classList.toggle("bad", bad);
}

function pressed(on) {
  $("listen").setAttribute("aria-pressed", on);
  $("listen-label").textContent = on ? "Stop" : "Listen";
}

function level(db) {
  $("level").value = db;
  $("listen").style.setProperty("--loud", Math.max(0, (db + 55) / 55).toFixed(2));
}

function decibels(samples) {
  const power = samples.reduce((sum, x) => sum + x * x, 0) / Math.max(1, samples.length);
  return Math.max(-60, 10 * Math.log10(power / 32768 ** 2 + 1e-9));
}

function clear(seconds) {
  timeline.clear(seconds);
  still = 0;
  $("detections").replaceChildren();
  $("none").hidden = false;
}

function explained(error) {
  const known = {
    NotAllowedError: "The browser may not use the microphone. Allow it in the address bar, then press Listen again.",
    NotFoundError: "No microphone was found. Plug one in, or drop a recording here.",
    NotReadableError: "The microphone is held by another program.",
    EncodingError: "That file is no audio that this browser can read.",
  };
  return known[error.name] ?? error.message;
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function later(act, ms) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, ms);
  };
}

// --- time

/** Where the right edge is: what was recorded, gliding on between blocks. */
function edge() {
  if (!session) return still;
  const { samples, heardAt } = session;
  still = samples / RATE + (session.source && !calm.matches ? Math.min(0.03, (performance.now() - heardAt) / 1_000) : 0);
  return still;
}

function redraw() {
  timeline.draw(edge());
}

function frame(now) {
  if (now - drawnAt >= (calm.matches ? CALM_MS : FRAME_MS) && (session || drawnAt === 0)) {
    redraw();
    drawnAt = now;
  }
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
addEventListener("resize", redraw);
introduce();
