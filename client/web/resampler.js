/**
 * Audio at any rate, in any split -> 16 kHz, by a Hann-windowed sinc. Runs in the audio thread as well as outside.
 */

const CROSSINGS = 16;
const STEPS = 256;

export class Resampler {
  /**
   * @param {number} from rate of the input, Hz
   * @param {number} to rate of the output, Hz
   */
  constructor(from, to = 16_000) {
    this.step = from / to;
    const cutoff = 0.92 * Math.min(1, to / from);
    this.half = Math.ceil(CROSSINGS / cutoff);
    this.table = Float32Array.from({ length: 2 * this.half * STEPS + 2 }, (_, i) => kernel(i / STEPS - this.half, cutoff, this.half));
    this.rest = new Float32Array(this.half);
    this.position = this.half;
  }

  /**
   * @param {Float32Array} block
   * @returns {Float32Array} the samples that are ready
   */
  feed(block) {
    const input = new Float32Array(this.rest.length + block.length);
    input.set(this.rest);
    input.set(block, this.rest.length);
    const count = Math.max(0, Math.ceil((input.length - this.half - this.position) / this.step));
    const output = new Float32Array(count);
    for (let n = 0; n < count; n++) output[n] = this.at(input, this.position + n * this.step);
    const next = this.position + count * this.step;
    const drop = Math.max(0, Math.floor(next) - this.half);
    this.rest = input.slice(drop);
    this.position = next - drop;
    return output;
  }

  /** The band-limited signal at a position between samples. */
  at(input, position) {
    const first = Math.ceil(position - this.half);
    let place = (first - position + this.half) * STEPS;
    let sum = 0;
    for (let i = first; i < position + this.half && i < input.length; i++, place += STEPS) {
      if (i >= 0) sum += input[i] * this.table[Math.round(place)];
    }
    return sum;
  }
}

function kernel(u, cutoff, half) {
  if (Math.abs(u) >= half) return 0;
  const x = Math.PI * cutoff * u;
  return cutoff * (x === 0 ? 1 : Math.sin(x) / x) * (0.5 + 0.5 * Math.cos((Math.PI * u) / half));
}

/**
 * @param {Float32Array} floats full scale 1
 * @returns {Int16Array}
 */
export function toInt16(floats) {
  return Int16Array.from(floats, (x) => Math.max(-32768, Math.min(32767, Math.round(x * 32768))));
}
