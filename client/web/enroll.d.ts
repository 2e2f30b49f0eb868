/** Types of enroll.js. */

import type { Enrolled } from "./deltaspot.js";

export class Takes {
  /** 30 ms at 16 kHz in; a word out, once it has ended. */
  feed(block: Int16Array): Int16Array | null;
}

export interface EnrollOptions {
  /** For servers with keys. */
  key?: string | null;
  threshold?: number;
  model?: string;
  point?: string;
}

export function enroll(
  url: string | URL,
  name: string,
  clips: (Int16Array | Blob)[],
  options?: EnrollOptions,
): Promise<Enrolled>;
export function wav(samples: Int16Array): Blob;
