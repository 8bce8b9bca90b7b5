// Requests of the lesson: sent to the engine of the page like any other, and measured on the way.

import type { EngineClient } from "../engine_client";
import type { ChatRequest, EngineSettings } from "../protocol";

export interface Measured {
  text: string;
  tokens: number[];
  pieces: number;
  promptTokens: number;
  cachedTokens: number;
  reason: string;
  /** Seconds from asking to the first token. */
  first: number;
  /** Seconds from asking to the end. */
  total: number;
  /** Blocks in its block table, at most. */
  blocks: number;
}

/** Requests that the lesson has made. */
let numAsked = 0;

/** Notices what would be counted with a measurement: the requests of others, pauses and slow motion. */
export class Disturbances {
  private readonly others: number;
  private moved = false;
  private readonly move = () => (this.moved = true);

  constructor(private readonly engine: EngineClient) {
    this.others = engine.numAdded - numAsked;
    engine.addEventListener("motion", this.move);
  }

  /** What there was, and an end to the watching. */
  end(): string | null {
    this.engine.removeEventListener("motion", this.move);
    if (this.engine.numAdded - numAsked > this.others) return "a chat was asked meanwhile";
    return this.moved ? "the engine was paused or slowed down meanwhile" : null;
  }
}

/** Asks the engine and waits for the end. A request that is refused or fails is an error. */
export function ask(engine: EngineClient, request: ChatRequest): Promise<Measured> {
  numAsked += 1;
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const seconds = () => (performance.now() - started) / 1000;
    const measured: Measured = { text: "", tokens: [], pieces: 0, promptTokens: 0, cachedTokens: 0, reason: "", first: 0, total: 0, blocks: 0 };
    let id: number | null = null;
    const watch = () => {
      const sequence = engine.latest?.report.engine.sequences.find((sequence) => sequence.id.request === id);
      measured.blocks = Math.max(measured.blocks, sequence?.blocks.length ?? 0);
    };
    engine.addEventListener("step", watch);
    engine.add(request, {
      accepted: (request, promptTokens) => {
        id = request;
        measured.promptTokens = promptTokens;
      },
      scheduled: (cached) => (measured.cachedTokens = cached),
      token: (text, token) => {
        if (measured.tokens.length === 0) measured.first = seconds();
        if (text) measured.pieces += 1;
        measured.text += text;
        measured.tokens.push(token);
      },
      finished: (text, reason) => {
        engine.removeEventListener("step", watch);
        measured.text += text;
        measured.reason = reason;
        measured.total = seconds();
        if (["stop", "length", "abort"].includes(reason)) resolve(measured);
        else reject(new Error(reason));
      },
    });
  });
}

/** A plain text to continue, of a fixed number of new tokens. */
export function continuation(text: string, max_tokens: number, temperature = 0, seed = 1): ChatRequest {
  return { text, sampling: { temperature, max_tokens, seed }, ignore_eos: true };
}

/** Makes the engine anew with other sizes; an error if it does not come up. */
export async function remake(engine: EngineClient, change: Partial<EngineSettings>): Promise<void> {
  if (!engine.source || !engine.settings) throw new Error("no model is loaded");
  if (!(await engine.load(engine.source, { ...engine.settings, ...change }))) {
    throw new Error(engine.status.state === "failed" ? engine.status.message : "the engine did not come up");
  }
}

/** The middle of some numbers. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Tokens sampled, and the steps and seconds they took, of a piece of work. */
export async function during<T>(engine: EngineClient, work: () => Promise<T>): Promise<{ result: T; steps: number; tokens: number; seconds: number; runningMax: number }> {
  let runningMax = 0;
  const count = () => (runningMax = Math.max(runningMax, engine.latest?.report.rows.length ?? 0));
  engine.addEventListener("step", count);
  const before = engine.latest?.report.engine.stats;
  const started = performance.now();
  try {
    const result = await work();
    const after = engine.latest?.report.engine.stats;
    return {
      result,
      steps: (after?.steps ?? 0) - (before?.steps ?? 0),
      tokens: (after?.generated_tokens ?? 0) - (before?.generated_tokens ?? 0),
      seconds: (performance.now() - started) / 1000,
      runningMax,
    };
  } finally {
    engine.removeEventListener("step", count);
  }
}
