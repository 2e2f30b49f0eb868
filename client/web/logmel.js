/** Samples -> the log-mel picture that the network sees: 480-sample frames every 160, 48 bands up to 7.6 kHz, 0 to 255. */

export const BANDS = 48;
export const HOP = 160;
const WINDOW = 480;
const FFT = 512;
const RATE = 16_000;
const TREBLE = 8; // of them, wider ones above HIGH_HZ
const HIGH_HZ = 4_000;
const TOP_HZ = 7_600;

const hann = Float32Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));
const filters = melFilters();

export class LogMel {
  constructor() {
    this.rest = new Float32Array(0);
  }

  /**
   * @param {Int16Array} samples
   * @returns {Uint8Array[]} frames that are complete now, band 0 lowest
   */
  feed(samples) {
    const all = new Float32Array(this.rest.length + samples.length);
    all.set(this.rest);
    all.set(samples, this.rest.length);
    const frames = [];
    let start = 0;
    for (; start + WINDOW <= all.length; start += HOP) frames.push(frame(all.subarray(start, start + WINDOW)));
    this.rest = all.slice(start);
    return frames;
  }
}

function frame(samples) {
  const power = spectrum(samples);
  return Uint8Array.from(filters, ({ first, weights }) => {
    const energy = weights.reduce((sum, w, i) => sum + w * power[first + i], 0);
    return Math.min(255, 10 * Math.log(1 + energy / WINDOW));
  });
}

/** Power of the bins 0..FFT/2, by an iterative radix-2 transform. */
function spectrum(samples) {
  const re = new Float32Array(FFT);
  const im = new Float32Array(FFT);
  for (let i = 0; i < WINDOW; i++) re[reversed(i)] = samples[i] * hann[i];
  for (let size = 2; size <= FFT; size *= 2) {
    for (let k = 0; k < size / 2; k++) {
      const angle = (-2 * Math.PI * k) / size;
      const c = Math.cos(angle);
      const s = Math.sin(angle);
      for (let a = k; a < FFT; a += size) butterfly(re, im, a, a + size / 2, c, s);
    }
  }
  return Float32Array.from({ length: FFT / 2 + 1 }, (_, i) => re[i] ** 2 + im[i] ** 2);
}

function butterfly(re, im, a, b, c, s) {
  const x = re[b] * c - im[b] * s;
  const y = re[b] * s + im[b] * c;
  re[b] = re[a] - x;
  im[b] = im[a] - y;
  re[a] += x;
  im[a] += y;
}

function reversed(i) {
  let r = 0;
  for (let bit = 1; bit < FFT; bit *= 2) r = r * 2 + (i & bit ? 1 : 0);
  return r;
}

/** Triangles of peak 1, evenly spaced in mel (HTK) up to HIGH_HZ and above it. */
function melFilters() {
  const mel = (hz) => 2595 * Math.log10(1 + hz / 700);
  const base = BANDS - TREBLE + 1;
  const [high, top] = [mel(HIGH_HZ), mel(TOP_HZ)];
  const edges = Array.from({ length: BANDS + 2 }, (_, i) => {
    const place = i <= base ? (high * i) / base : high + ((top - high) * (i - base)) / TREBLE;
    return 700 * (10 ** (place / 2595) - 1);
  });
  return Array.from({ length: BANDS }, (_, band) => {
    const [low, peak, high] = edges.slice(band, band + 3);
    const bins = Array.from({ length: FFT / 2 + 1 }, (_, k) => (k * RATE) / FFT);
    const weights = bins.map((hz) => Math.max(0, Math.min((hz - low) / (peak - low), (high - hz) / (high - peak))));
    const first = weights.findIndex((w) => w > 0);
    return { first, weights: weights.slice(first).filter((w) => w > 0) };
  });
}
