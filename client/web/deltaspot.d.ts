/** Types of deltaspot.js; the messages are those of service/protocol.py, and of a server's /asyncapi.json. */

export interface KeywordSettings {
  threshold?: number;
  patience?: number;
  refractory_ms?: number;
  enabled?: boolean;
}

/** What `deltaspot enroll` writes, without its `format`. */
export interface Enrolled {
  name: string;
  fingerprint: string;
  recordings: number;
  prototype: number[];
  weights: number[];
  threshold?: number;
}

export type Method = "dense" | "delta" | "pruned" | "delta+pruned";

export interface Configuration {
  sample_rate?: number;
  model?: string;
  point?: string;
  method?: Method;
  coarsest?: number;
  keywords?: Record<string, KeywordSettings>;
  enrolled?: Enrolled[];
  /** Names of keywords that the server keeps. */
  stored?: string[];
  scores?: boolean;
  heartbeat_ms?: number;
  preroll_ms?: number;
}

export interface Options extends Configuration {
  /** How long to try again without any progress, s. */
  retrySeconds?: number;
  /** For servers with keys: fetches a fresh ticket before each connection. */
  ticket?: () => Promise<string>;
}

export interface Ready {
  session: string;
  model: string;
  fingerprint: string;
  labels: string[];
  keywords: Record<string, KeywordSettings>;
  point: string;
  points: string[];
  methods: Record<string, Method>;
  hop_samples: number;
  replay_samples: number;
  sample: number;
  limits: { frame_bytes: number; stream_s: number; idle_s: number; speed: number };
}

export interface Detection {
  id: number;
  keyword: string;
  score: number;
  start_s: number;
  end_s: number;
  at_s: number;
  latency_ms: number;
  clip?: string;
}

export interface Scores {
  at_s: number;
  hop_s: number;
  posteriors: number[][];
  work: number[];
}

export interface Heartbeat {
  at_s: number;
  lag_ms: number;
  real_time_factor: number;
  macs_done: number;
  macs_skipped_vs_window: number;
  macs_skipped_vs_causal: number;
  skipped: Record<string, number>;
  delta_scale: number;
  cache_bytes: number;
}

/** Of a stream that ended: `audio_s` and `detections` of all its connections, the rest of the last one, what was replayed included. */
export interface Totals {
  audio_s: number;
  samples: number;
  chunks: number;
  tokens: number;
  detections: number;
  macs_done: number;
  macs_skipped_vs_window: number;
  macs_skipped_vs_causal: number;
}

export interface Events {
  ready: Ready;
  detection: Detection;
  scores: Scores;
  heartbeat: Heartbeat;
  marker: { id: number | string };
  warning: { code: string; message: string };
  interrupted: { reason: string; retrySeconds: number };
  failed: SpotterError;
  /** Of each connection that a server ended; `normal` is the stream's end. */
  closed: { reason: string; totals: Totals };
}

export class SpotterError extends Error {
  /** Close code, 0 if there was no connection. */
  code: number;
  field: string | null;
}

export class Spotter extends EventTarget {
  readonly ready: Ready | null;
  readonly totals: Totals | null;
  /** Samples that were refused because a minute was waiting already. */
  readonly lost: number;
  /** Whether `finish` was called: whatever is said after it throws. */
  readonly finished: boolean;
  send(samples: Int16Array): boolean;
  configure(changes: Configuration): void;
  marker(id: number | string): void;
  flush(): void;
  reset(): void;
  /** Of a detection that this connection told; the server knows no earlier ones. */
  feedback(detection: number, correct: boolean): void;
  finish(): Promise<Totals>;
  /** Let go at once, of an interrupted stream, too: nothing more is told, and `finish` fails unless all was judged. */
  abandon(): void;
  addEventListener<K extends keyof Events>(type: K, listener: (event: CustomEvent<Events[K]>) => void): void;
}

/** `url` names a server; a path that ends in "/" is where a proxy has it, any other is the stream's own. */
export function connect(url: string | URL, options?: Options): Promise<Spotter>;
export function streamUrl(url: string | URL): string;
