/** The page: a source of sound, a stream to the server, and what comes back. */

import { askForKey, refusal, ticket, wantsKey } from "./access.js";
import { connect } from "./deltaspot.js";
import { keep, kept } from "./kept.js";
import { LogMel } from "./logmel.js";
import { OwnWords } from "./own.js";
import { $, decibels, explained, figures, layers, level, listed, make, pressed, status, unlisted } from "./shown.js";
import { openFile, openMicrophone, RATE } from "./sources.js";
import { Timeline } from "./timeline.js";

const LIVE_S = 12;
const LONGEST_VIEW_S = 60;
const FRAME_MS = 30;
const CALM_MS = 500;

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

async function end() {
  const mine = session ?? {};
  session = null;
  pressed(false);
  level(-60);
  await leave(mine);
}

/** Let go of a stream's sound and of its connection, with what can be told of it in two seconds. */
async function leave({ source, spotter }) {
  source?.stop();
  if (spotter && !spotter.failure) await Promise.race([spotter.finish(), new Promise((done) => setTimeout(done, 2_000))]).catch(() => {});
  spotter?.abandon();
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

/** A microphone does not wait, and may be unplugged. */
function microphone(take) {
  return openMicrophone(
    (samples) => take(samples) || status("The server does not keep up; sound is being lost.", true),
    (error) => end().then(() => session || status(error.message, true)),
  );
}

/** Show what a stream tells, until another one takes its place. */
function listenTo(spotter) {
  const on = (type, act) => spotter.addEventListener(type, ({ detail }) => (!session || session.spotter === spotter) && act(detail));
  let broken = false;
  configured(spotter.ready);
  on("ready", configured);
  on("scores", (scores) => {
    timeline.addScores(scores, spotter.ready.labels);
    layers(scores.work.length);
  });
  on("detection", (detection) => heard(detection, spotter));
  on("heartbeat", figures);
  on("warning", ({ message }) => status(message, true));
  on("interrupted", ({ reason }) => {
    broken = true;
    status(`Interrupted: ${reason}. Trying again; nothing is lost.`, true);
  });
  on("ready", () => {
    if (broken && session?.source) status("Listening again.");
    broken = false;
  });
  on("failed", (error) => {
    end();
    status(explained(error), true);
  });
}

function wishes() {
  const wish = {};
  if (chosen.point) wish.point = chosen.point;
  const known = Object.entries(chosen.keywords).filter(([word]) => own.fits(word));
  if (known.length) wish.keywords = Object.fromEntries(known);
  return wish;
}

const sayWishes = later(() => session?.spotter?.finished === false && session.spotter.configure(wishes()), 150);

// --- controls

$("listen").onclick = () => {
  if (session) end().then(() => session || status("Stopped."));
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
    keep("theme", name);
  }
  const other = dark() ? "light" : "dark";
  $("theme").textContent = other === "light" ? "☀ Light" : "☾ Dark";
  $("theme").ariaLabel = `Switch to ${other} colours`;
  timeline.readColours();
  redraw();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
theme(kept("theme"));

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

// --- what is shown

function heard(detection, spotter) {
  timeline.detections.push(detection);
  listed(detection, (correct) => spotter.feedback(detection.id, correct));
  const name = $("names").children[timeline.words.indexOf(detection.keyword)];
  name?.classList.add("now");
  setTimeout(() => name?.classList.remove("now"), 1_200);
}

function clear(seconds) {
  timeline.clear(seconds);
  still = 0;
  unlisted();
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
