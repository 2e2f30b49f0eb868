/** Types of resampler.js. */

export class Resampler {
  /** Rates in Hz; the output's is 16 kHz if left out. */
  constructor(from: number, to?: number);
  /** Samples in any split, full scale 1; the samples that are ready come out. */
  feed(block: Float32Array): Float32Array;
}

export function toInt16(floats: Float32Array): Int16Array;
