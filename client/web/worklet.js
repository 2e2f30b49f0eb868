/** The audio thread: whatever the microphone's rate, blocks of 30 ms at 16 kHz come out. */

import { Resampler, toInt16 } from "./resampler.js";

const BLOCK = 480;

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate);
    this.block = new Float32Array(BLOCK);
    this.filled = 0;
  }

  process([channels]) {
    if (!channels.length) return true;
    for (const sample of this.resampler.feed(mixed(channels))) {
      this.block[this.filled++] = sample;
      if (this.filled === BLOCK) {
        const samples = toInt16(this.block);
        this.port.postMessage(samples, [samples.buffer]);
        this.filled = 0;
      }
    }
    return true;
  }
}

function mixed(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

registerProcessor("recorder", Recorder);
