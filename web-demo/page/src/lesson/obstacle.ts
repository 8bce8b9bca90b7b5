// What stands in the way of a measurement. The lesson counts steps, blocks and seconds of the one engine of the page, and
// some of its steps make that engine anew: it must be idle, and at full speed.

import type { EngineClient } from "../engine_client";

export interface Obstacle {
  text: string;
  /** What helps, as a button; absent where the lesson has no remedy. */
  remedy?: { label: string; apply: () => Promise<void> };
}

/** The first obstacle; `fullSpeed` ends pauses and slow motion. */
export function findObstacle(engine: EngineClient, fullSpeed: () => void): Obstacle | null {
  if (!engine.ready) return { text: "No model is loaded." };
  const faster = { label: "Run at full speed", apply: () => Promise.resolve(fullSpeed()) };
  if (engine.numOpen > 0) {
    const text = engine.numOpen === 1 ? "An answer is running: it would be counted too." : `${engine.numOpen} answers are running: they would be counted too.`;
    return { text, remedy: { label: "Stop them and measure", apply: () => engine.abortAll() } };
  }
  if (engine.motion.paused) return { text: "The engine is paused.", remedy: faster };
  if (engine.motion.delay > 0) return { text: "The engine runs in slow motion, which would be measured too.", remedy: faster };
  return null;
}
