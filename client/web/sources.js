/** Where the page's audio comes from: a microphone, or a file. Both give Int16Array blocks at 16 kHz. */

import { Resampler, toInt16 } from "./resampler.js";

export const RATE = 16_000;
const BLOCK = 480;
const FILE_SPEED = 6;
const TICK_MS = 30;

/**
 * @param {(samples: Int16Array) => void} take
 * @param {(error: Error) => void} lost called if the microphone goes away
 * @returns {Promise<{name: string, stop: () => void}>}
 */
export async function openMicrophone(take, lost) {
  if (!navigator.mediaDevices) throw new Error("Browsers give microphones only to pages from https or from this machine.");
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  const context = new AudioContext();
  const [track] = stream.getAudioTracks();
  const stop = () => {
    track.stop();
    context.close();
  };
  track.onended = () => lost(new Error("The microphone is gone. Plug it in, then begin again."));
  try {
    await context.audioWorklet.addModule(new URL("./worklet.js", import.meta.url));
    const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
    recorder.port.onmessage = ({ data }) => take(data);
    context.createMediaStreamSource(stream).connect(recorder);
  } catch (error) {
    stop();
    throw error;
  }
  return { name: track.label || "microphone", stop };
}

/**
 * Decode a file and give it out several times faster than real time, or as fast as it is taken.
 *
 * @param {Blob} file
 * @param {(samples: Int16Array) => boolean} take returns false if it wants this block again later
 * @returns {Promise<{seconds: number, done: Promise<void>, stop: () => void}>}
 */
export async function openFile(file, take) {
  const samples = await decode(await file.arrayBuffer());
  let stop = () => {};
  const done = new Promise((resolve) => {
    let sent = 0;
    const timer = setInterval(() => {
      for (let n = 0; n < FILE_SPEED && sent < samples.length && take(samples.slice(sent, sent + BLOCK)); n++) sent += BLOCK;
      if (sent >= samples.length) stop();
    }, TICK_MS);
    stop = () => {
      clearInterval(timer);
      resolve();
    };
  });
  return { seconds: samples.length / RATE, done, stop: () => stop() };
}

/** Any file that the browser can read -> all its samples, mono, at 16 kHz. */
async function decode(bytes) {
  const context = new OfflineAudioContext(1, 1, 48_000);
  const buffer = await context.decodeAudioData(bytes);
  const mono = new Float32Array(buffer.length);
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    buffer.getChannelData(c).forEach((x, i) => (mono[i] += x / buffer.numberOfChannels));
  }
  const resampler = new Resampler(buffer.sampleRate, RATE);
  const tail = new Float32Array(resampler.half + 1);
  return toInt16(new Float32Array([...resampler.feed(mono), ...resampler.feed(tail)]));
}
