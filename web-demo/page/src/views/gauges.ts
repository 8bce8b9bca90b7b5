// Numbers of the engine: speed, queue, budget, prefix cache, preemptions, and the memory that paging saves.

import { bytes, el } from "../dom";
import type { StepRecord, Watched } from "../engine_client";

/** Seconds that the speed is measured over. */
const WINDOW = 3;

/**
 * Tokens sampled a second over the last seconds of work; steps that did nothing do not count as time. Where steps were not
 * shown, the engine's counters and its clock tell.
 */
export function tokensPerSecond(steps: StepRecord[]): number {
  const end = steps.at(-1)?.at ?? 0;
  const recent = steps.filter((step) => step.at > end - WINDOW * 1000 && step.report.rows.length > 0);
  const [first, last] = [recent[0], recent.at(-1)];
  if (first && last && last.at > first.at && recent.some((step) => step.missed > 0)) {
    const generated = last.report.engine.stats.generated_tokens - first.report.engine.stats.generated_tokens;
    return (1000 * generated) / (last.at - first.at);
  }
  const seconds = recent.reduce((sum, step) => sum + step.seconds, 0);
  const tokens = recent.reduce((sum, step) => sum + step.report.rows.filter((row) => row.samples).length, 0);
  return seconds > 0 ? tokens / seconds : 0;
}

export class Gauges {
  readonly element = el("dl", { class: "gauges" });
  private readonly values = new Map<string, HTMLElement>();

  constructor(private readonly engine: Watched) {}

  draw(steps: StepRecord[]): void {
    const latest = steps.at(-1)?.report.engine;
    if (!latest) return;
    const { stats } = latest;
    const { bytesPerToken: perToken, longest } = this.engine.memory ?? { bytesPerToken: 0, longest: 0 };
    const paged = stats.blocks_used * latest.block_size * perToken;
    const contiguous = stats.running * longest * perToken;
    const hits = stats.prefix_cache_queries > 0 ? (100 * stats.prefix_cache_hits) / stats.prefix_cache_queries : 0;
    this.set("Tokens per second", stats.running > 0 ? tokensPerSecond(steps).toFixed(1) : "–");
    this.set("Running", `${stats.running}`);
    this.set("Waiting queue", `${stats.waiting}`);
    this.set("Last step", `${stats.last_step_tokens} of ${latest.max_num_batched_tokens} tokens`);
    this.set("Prefix cache", `${stats.prefix_cache_hits} of ${stats.prefix_cache_queries} tokens (${hits.toFixed(0)}\u00a0%)`);
    this.set("Preemptions", `${stats.preemptions}`);
    this.set("KV memory, paged", bytes(paged));
    this.set("With pre-allocation", contiguous > 0 ? `${bytes(contiguous)} (${Math.round(100 - (100 * paged) / contiguous)}\u00a0% saved)` : "–");
    this.set("Steps", `${stats.steps}`);
  }

  private set(name: string, value: string): void {
    let cell = this.values.get(name);
    if (!cell) {
      cell = el("dd");
      this.values.set(name, cell);
      this.element.append(el("div", {}, el("dt", {}, name), cell));
    }
    if (cell.textContent !== value) cell.textContent = value;
  }
}
