/** What the page says in words and figures; knows no stream and no sound. */

const KEPT_DETECTIONS = 200;

export const $ = (id) => document.getElementById(id);

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function status(text, bad = false) {
  $("status").textContent = text;
  $("status").parentNode.classList.toggle("bad", bad);
}

/** What a person can do about an error. */
export function explained(error) {
  const known = {
    NotAllowedError: "The browser may not use the microphone. Allow it in the address bar, then press Listen again.",
    NotFoundError: "No microphone was found. Plug one in, or drop a recording here.",
    NotReadableError: "The microphone is held by another program.",
    EncodingError: "That file is no audio that this browser can read.",
  };
  return known[error.name] ?? error.message;
}

export function pressed(on) {
  $("listen").setAttribute("aria-pressed", on);
  $("listen-label").textContent = on ? "Stop" : "Listen";
}

export function level(db) {
  $("level").value = db;
  $("listen").style.setProperty("--loud", Math.max(0, (db + 55) / 55).toFixed(2));
}

export function decibels(samples) {
  const power = samples.reduce((sum, x) => sum + x * x, 0) / Math.max(1, samples.length);
  return Math.max(-60, 10 * Math.log10(power / 32768 ** 2 + 1e-9));
}

export function figures({ at_s, macs_skipped_vs_window, macs_skipped_vs_causal, lag_ms, real_time_factor, cache_bytes }) {
  $("seconds").textContent = `${at_s.toFixed(1)} s`;
  $("window").textContent = percent(macs_skipped_vs_window, 2);
  $("causal").textContent = percent(macs_skipped_vs_causal, 1);
  $("lag").textContent = `${lag_ms.toFixed(0)} ms`;
  if (real_time_factor !== undefined) $("core").textContent = percent(real_time_factor, 2);
  if (cache_bytes !== undefined) $("memory").textContent = `${Math.round(cache_bytes / 1024)} kB`;
}

const percent = (share, digits) => `${(100 * share).toFixed(digits)} %`;

/** Names of the rows of the picture of work. */
export function layers(count) {
  if ($("layers").children.length === count) return;
  const names = ["stem", ...Array.from({ length: count - 2 }, (_, i) => `block ${i + 1}`), "read-out"];
  $("layers").replaceChildren(...names.map((name) => make("li", { textContent: name })));
  document.documentElement.style.setProperty("--layers", count);
}

/** A line for a detection, the newest on top; `judge` is told whether a person thinks it right. */
export function listed({ keyword, score, start_s, latency_ms }, judge) {
  const verdict = (text, label, correct) => {
    const button = make("button", { type: "button", textContent: text, ariaLabel: `${keyword} was ${label}` });
    button.onclick = () => {
      judge(correct);
      for (const other of button.parentNode.children) other.setAttribute("aria-pressed", other === button);
    };
    return button;
  };
  $("none").hidden = true;
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
}

/** Forget the detections that are listed. */
export function unlisted() {
  $("detections").replaceChildren();
  $("none").hidden = false;
}
