/**
 * The lanes over one time axis: the sound, the words, the work. Times are stream time, s; the newest is at the right.
 *
 * Pictures (sound, work) are rings of columns on canvases of their own, drawn scaled; the words are lines.
 */

import { BANDS, HOP } from "./logmel.js";

const FRAME_S = HOP / 16_000;
const FRAME_END_S = 480 / 16_000;
const KEPT_S = 90;
/** Share of the view that sound may run ahead of what is known of it, before the view waits. */
const WAIT = 0.6;

/** A picture that scrolls: column n of time is column n mod width of a canvas. */
class Ring {
  constructor(columnSeconds, rows) {
    this.columnSeconds = columnSeconds;
    this.canvas = document.createElement("canvas");
    this.canvas.width = Math.round(KEPT_S / columnSeconds);
    this.canvas.height = rows;
    this.context = this.canvas.getContext("2d");
    this.column = this.context.createImageData(1, rows);
    this.values = new Map();
    this.newest = -1;
  }

  /** Bytes (rows), the first row at the top. */
  set(index, bytes, colours) {
    this.values.set(index, bytes);
    this.values.delete(index - this.canvas.width);
    this.newest = Math.max(this.newest, index);
    bytes.forEach((value, row) => this.column.data.set(colours[value], 4 * row));
    this.context.putImageData(this.column, index % this.canvas.width, 0);
  }

  repaint(colours) {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const [index, bytes] of this.values) this.set(index, bytes, colours);
  }

  /** Draw the columns between two times into a context of the given size. */
  draw(context, from, to, width, height) {
    const columns = this.canvas.width;
    const scale = width / (to - from);
    const last = Math.min(this.newest + 1, Math.ceil(to / this.columnSeconds));
    let index = Math.max(0, Math.floor(from / this.columnSeconds), last - columns);
    while (index < last) {
      const count = Math.min(last - index, columns - (index % columns));
      const x = (index * this.columnSeconds - from) * scale;
      context.drawImage(this.canvas, index % columns, 0, count, this.canvas.height, x, 0, count * this.columnSeconds * scale, height);
      index += count;
    }
  }
}

export class Timeline {
  /** @param {{mel: HTMLCanvasElement, posteriors: HTMLCanvasElement, work: HTMLCanvasElement, axis: HTMLCanvasElement}} canvases */
  constructor(canvases) {
    this.canvases = canvases;
    this.words = [];
    this.thresholds = {};
    this.readColours();
    this.clear(12);
  }

  /** Begin again, with this many seconds in view. */
  clear(seconds) {
    this.seconds = seconds;
    this.mel = new Ring(FRAME_S, BANDS);
    this.work = this.heat = null;
    this.rows = [];
    this.detections = [];
    this.frames = 0;
  }

  /** The theme changed. */
  readColours() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    this.melColours = colourMap(value("--mel-map"));
    this.workColours = colourMap(value("--work-map"));
    for (const name of ["ink", "soft", "line", "accent", "accent-ink", "panel"]) this[name] = value(`--${name}`);
    document.documentElement.style.setProperty("--work-stops", value("--work-map").split(/\s+/).join(","));
    this.mel?.repaint(this.melColours);
    this.work?.repaint(this.workColours);
  }

  addFrames(frames) {
    for (const frame of frames) this.mel.set(this.frames++, frame.map(brightness).reverse(), this.melColours);
  }

  /** @param {import("./deltaspot.js").Scores} scores and the order of its columns */
  addScores({ at_s, hop_s, posteriors, work }, labels) {
    const columns = this.words.map((word) => labels.indexOf(word));
    if (work.some(Boolean)) this.heat = Uint8Array.from(work, (share) => 255 * Math.min(1, Math.sqrt(share)));
    const heat = this.heat ?? []; // tokens whose work was counted with the ones before look like them
    posteriors.forEach((row, i) => {
      const time = at_s - (posteriors.length - 1 - i) * hop_s;
      this.rows.push({ time, values: columns.map((c) => row[c]) });
      if (heat.length) (this.work ??= new Ring(hop_s, heat.length)).set(Math.round(time / hop_s), heat, this.workColours);
    });
    while (this.rows.length && this.rows[0].time < at_s - KEPT_S) this.rows.shift();
  }

  draw(now) {
    const judged = this.rows.at(-1)?.time ?? now;
    const to = Math.max(Math.min(now, judged + WAIT * this.seconds), this.seconds);
    const from = to - this.seconds;
    this.lane("mel", (context, width, height) => {
      context.imageSmoothingQuality = "high";
      this.mel.draw(context, from - FRAME_END_S, to - FRAME_END_S, width, height);
      this.drawDetections(context, from, width, height);
    });
    this.lane("posteriors", (context, width, height) => this.drawWords(context, from, width, height));
    this.lane("work", (context, width, height) => {
      context.imageSmoothingEnabled = false;
      this.work?.draw(context, from, to, width, height);
    });
    this.lane("axis", (context, width) => this.drawAxis(context, from, to, width));
  }

  lane(name, paint) {
    const canvas = this.canvases[name];
    const { clientWidth: width, clientHeight: height } = canvas;
    const density = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * density) || canvas.height !== Math.round(height * density)) {
      canvas.width = Math.round(width * density);
      canvas.height = Math.round(height * density);
    }
    const context = canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `600 13px ${getComputedStyle(document.body).fontFamily}`;
    paint(context, width, height);
  }

  drawDetections(context, from, width, height) {
    const scale = width / this.seconds;
    const taken = [-Infinity, -Infinity, -Infinity]; // right end of each row of labels
    for (const { keyword, start_s, end_s } of this.detections) {
      const x = (start_s - from) * scale;
      const wide = (end_s - start_s) * scale;
      if (x + wide < 0) continue;
      context.strokeStyle = this.accent;
      context.lineWidth = 1.5;
      context.strokeRect(x, 1, wide, height - 2);
      const half = context.measureText(keyword).width / 2 + 8;
      const middle = Math.max(half, x + wide / 2);
      const row = taken.findIndex((end) => middle - half > end);
      if (row < 0) continue;
      this.chip(context, keyword, middle, half, 16 + 24 * row);
      taken[row] = middle + half + 2;
    }
  }

  chip(context, text, x, half, y) {
    context.fillStyle = this.accent;
    context.beginPath();
    context.roundRect(x - half, y - 11, 2 * half, 22, 11);
    context.fill();
    context.fillStyle = this["accent-ink"];
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, x, y + 0.5);
  }

  drawWords(context, from, width, height) {
    const row = height / Math.max(1, this.words.length);
    const scale = width / this.seconds;
    const points = this.rows.filter(({ time }) => time >= from - 0.1);
    this.words.forEach((word, index) => {
      const base = (index + 1) * row - 3;
      const tall = row - 6;
      const x = ({ time }) => (time - from) * scale;
      const y = ({ values }) => base - values[index] * tall;
      line(context, [[0, base], [width, base]], this.line);
      this.drawHits(context, word, from, scale, index * row, row);
      if (points.length) {
        const shape = points.map((point) => [x(point), y(point)]);
        area(context, shape, base, this.accent);
        line(context, shape, this.accent, 1.5);
      }
      const level = base - (this.thresholds[word] ?? 1) * tall;
      context.setLineDash([2, 4]);
      line(context, [[0, level], [width, level]], this.soft);
      context.setLineDash([]);
    });
  }

  drawHits(context, word, from, scale, top, tall) {
    context.fillStyle = this.accent;
    for (const hit of this.detections) {
      if (hit.keyword !== word) continue;
      context.globalAlpha = 0.16;
      context.fillRect((hit.start_s - from) * scale, top, (hit.at_s - hit.start_s) * scale, tall);
      context.globalAlpha = 1;
      context.fillRect((hit.at_s - from) * scale, top + 2, 2, tall - 4);
    }
  }

  drawAxis(context, from, to, width) {
    const step = this.seconds / width > 1 / 30 ? 5 : 1;
    context.font = context.font.replace("600 13px", "400 11px");
    context.fillStyle = this.soft;
    context.textBaseline = "top";
    for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
      const x = ((t - from) / this.seconds) * width;
      context.textAlign = x < 12 ? "left" : x > width - 12 ? "right" : "center";
      context.fillText(`${t} s`, x, 3);
    }
  }
}

/** Rooms are never silent: what is below their hum is drawn as ground. */
function brightness(value) {
  return Math.min(255, Math.max(0, value - 60) * 1.5);
}

function line(context, points, colour, width = 1) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  points.forEach(([x, y]) => context.lineTo(x, y));
  context.stroke();
}

function area(context, points, base, colour) {
  context.fillStyle = colour;
  context.globalAlpha = 0.3;
  context.beginPath();
  context.moveTo(points[0][0], base);
  points.forEach(([x, y]) => context.lineTo(x, y));
  context.lineTo(points.at(-1)[0], base);
  context.fill();
  context.globalAlpha = 1;
}

/** "#aabbcc #..." -> 256 colours [r, g, b, 255], evenly blended. */
function colourMap(text) {
  const stops = text.split(/\s+/).map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, value) => {
    const place = (value / 255) * (stops.length - 1);
    const i = Math.min(Math.floor(place), stops.length - 2);
    return [...stops[i].map((c, k) => c + (stops[i + 1][k] - c) * (place - i)), 255];
  });
}
