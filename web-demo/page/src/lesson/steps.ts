// The lesson: ten steps and four tests. Each measures on this machine, states a claim, and says whether it holds here.

import { bytes } from "../dom";
import type { EngineClient } from "../engine_client";
import { ask, continuation, during, remake, type Measured } from "./measure";

export interface Outcome {
  /** What was measured, a line each. */
  lines: string[];
  /** What should be so. */
  claim: string;
  /** Whether it is so here. */
  holds: boolean;
}

export interface Step {
  id: string;
  title: string;
  text: string;
  run: (engine: EngineClient) => Promise<Outcome>;
}

const TEXTS = ["The capital of France is", "Water boils at", "The moon is", "A good recipe begins with", "Once upon a time"];

const rate = (tokens: number, seconds: number) => `${(tokens / seconds).toFixed(1)} tokens/s`;
const seconds = (value: number) => `${value.toFixed(2)} s`;

async function webgpu(): Promise<string> {
  const gpu = (navigator as Navigator & { gpu?: GPU }).gpu;
  if (!gpu) return "no";
  return (await gpu.requestAdapter()) ? "yes" : "yes, but no adapter answers";
}

async function device(engine: EngineClient): Promise<Outcome> {
  const ready = engine.ready;
  const lines = [
    `Computes on: ${ready?.adapter ?? "nothing"} (${ready?.facts.device ?? "not loaded"})`,
    `WebGPU in this browser: ${await webgpu()}; processor cores: ${navigator.hardwareConcurrency}`,
  ];
  return { lines, claim: "A device is open and the model is on it.", holds: ready !== null };
}

async function memory(engine: EngineClient): Promise<Outcome> {
  const ready = engine.ready;
  if (!ready) throw new Error("no model is loaded");
  const { facts } = ready;
  const pool = (engine.settings?.num_blocks ?? 0) * (engine.settings?.block_size ?? 0) * facts.kv_bytes_per_token;
  return {
    lines: [
      `${facts.name}: ${(facts.num_parameters / 1e6).toFixed(1)} million numbers, ${facts.dtype}: ${bytes(facts.weight_bytes)}`,
      `Loaded in ${seconds(ready.seconds)}${ready.fromCache ? " from this browser's storage" : ""}; SHA-256 ${ready.sha256.slice(0, 16)}…`,
      `Keys and values: ${bytes(facts.kv_bytes_per_token)} a token, ${bytes(pool)} for the whole pool`,
    ],
    claim: "The memory of the cache is a small, fixed pool, whatever the requests do.",
    holds: pool > 0 && pool < facts.weight_bytes,
  };
}

/** A request that grows to `length` tokens in all. */
async function grow(engine: EngineClient, length: number): Promise<Measured> {
  const words = Math.max(1, length - 4);
  const probe = await ask(engine, continuation(" a".repeat(words), 1));
  return ask(engine, continuation(" a".repeat(words), length - probe.promptTokens));
}

async function paging(engine: EngineClient): Promise<Outcome> {
  const size = engine.settings?.block_size ?? 16;
  const short = await grow(engine, 10);
  const long = await grow(engine, 200);
  const need = (length: number) => Math.ceil(length / size);
  const total = (one: Measured) => one.promptTokens + one.tokens.length;
  const used = engine.latest?.report.engine.stats.blocks_used;
  const line = (one: Measured) => `${total(one)} tokens took ${one.blocks} blocks of ${size} (${one.blocks * size} slots)`;
  return {
    lines: [line(short), line(long), `Blocks in use afterwards: ${used}`],
    claim: `10 tokens need ${need(10)} and 200 tokens ${need(200)} blocks, and all are given back.`,
    holds: total(short) === 10 && total(long) === 200 && short.blocks === need(10) && long.blocks === need(200) && used === 0,
  };
}

async function contiguous(engine: EngineClient): Promise<Outcome> {
  const before = engine.settings;
  const model = 256;
  const many = () => Promise.all(Array.from({ length: 6 }, (_, index) => ask(engine, continuation(`${index} ${TEXTS[index % 5]!}`, 6))));
  try {
    await remake(engine, { block_size: model, num_blocks: 3, max_model_len: model, max_num_seqs: 8 });
    const whole = await during(engine, many);
    await remake(engine, { block_size: 16, num_blocks: (3 * model) / 16, max_model_len: model, max_num_seqs: 8 });
    const paged = await during(engine, many);
    return {
      lines: [
        `Six requests, memory for ${3 * model} tokens.`,
        `Contiguous (one run of ${model} slots a request): ${whole.runningMax} ran at once, ${whole.steps} steps`,
        `Paged (blocks of 16): ${paged.runningMax} ran at once, ${paged.steps} steps`,
      ],
      claim: "In the same memory, paging runs more requests at once.",
      holds: paged.runningMax > whole.runningMax && paged.steps < whole.steps,
    };
  } finally {
    if (before) await remake(engine, before);
  }
}

async function sampling(engine: EngineClient): Promise<Outcome> {
  const text = TEXTS[4]!;
  const [first, again, balanced, free] = await Promise.all([
    ask(engine, continuation(text, 10, 0)), ask(engine, continuation(text, 10, 0, 2)),
    ask(engine, continuation(text, 10, 0.7)), ask(engine, continuation(text, 10, 1.5)),
  ]);
  return {
    lines: [`0.0: ${text}${first.text}`, `0.0 again: ${text}${again.text}`, `0.7: ${text}${balanced.text}`, `1.5: ${text}${free.text}`],
    claim: "Temperature 0 gives the same text whatever the seed; 1.5 does not give that text.",
    holds: first.text === again.text && free.text !== first.text,
  };
}

async function batch(engine: EngineClient): Promise<Outcome> {
  const tokens = 8;
  const alone = await during(engine, async () => {
    for (const text of TEXTS) await ask(engine, continuation(`1${text}`, tokens));
  });
  const together = await during(engine, () => Promise.all(TEXTS.map((text) => ask(engine, continuation(`2${text}`, tokens)))));
  const gain = alone.seconds / together.seconds;
  return {
    lines: [
      `Five requests one after the other: ${seconds(alone.seconds)}, ${rate(alone.tokens, alone.seconds)}, ${alone.steps} steps`,
      `Five at once: ${seconds(together.seconds)}, ${rate(together.tokens, together.seconds)}, ${together.steps} steps`,
      `${gain.toFixed(1)} times as fast`,
    ],
    claim: "Five concurrent requests are served at least 1.8 times as fast as five in turn.",
    holds: gain >= 1.8,
  };
}

async function continuous(engine: EngineClient): Promise<Outcome> {
  const lengths = [2, 12, 3, 2, 10, 3];
  const places = 3;
  const go = (run: number, index: number) => ask(engine, continuation(`${run}${index} ${TEXTS[index % 5]!}`, lengths[index]!));
  // Static batching: a group begins together, and the next begins when the slowest of it has ended.
  const fixed = await during(engine, async () => {
    for (let start = 0; start < lengths.length; start += places) {
      await Promise.all(lengths.slice(start, start + places).map((_, offset) => go(1, start + offset)));
    }
  });
  // Continuous batching with as many places: whoever ends makes room at once.
  const waiting = lengths.map((_, index) => index);
  const fluid = await during(engine, () => Promise.all(Array.from({ length: places }, async () => {
    for (let index = waiting.shift(); index !== undefined; index = waiting.shift()) await go(2, index);
  })));
  return {
    lines: [
      `Six answers of ${lengths.join(", ")} tokens, three at a time.`,
      `Static batches: ${fixed.steps} steps, ${seconds(fixed.seconds)}`,
      `Continuous batching: ${fluid.steps} steps, ${seconds(fluid.seconds)}`,
    ],
    claim: "Continuous batching needs fewer steps than static batches.",
    holds: fluid.steps < fixed.steps,
  };
}

async function analysis(engine: EngineClient): Promise<Outcome> {
  const beginning = "You are a careful assistant who answers every question in one short sentence, and who never guesses anything at all. ";
  const first = await ask(engine, continuation(`${beginning}\nQuestion: Who wrote Hamlet?\nAnswer:`, 6));
  const second = await ask(engine, continuation(`${beginning}\nQuestion: What is two plus two?\nAnswer:`, 6));
  const line = (one: Measured) => `${one.promptTokens} prompt tokens (${one.cachedTokens} cached), ${one.tokens.length} new, ended by ${one.reason}: “${one.text.trim()}”`;
  const on = engine.settings?.enable_prefix_caching ?? false;
  return {
    lines: [line(first), line(second)],
    claim: on ? "The second request finds the common beginning in the prefix cache." : "The prefix cache is off: nothing is found.",
    holds: on ? second.cachedTokens > 0 : second.cachedTokens === 0,
  };
}

async function streaming(engine: EngineClient): Promise<Outcome> {
  const one = await ask(engine, continuation(TEXTS[0]!, 12));
  return {
    lines: [`“${TEXTS[0]}${one.text}”`, `First token after ${seconds(one.first)}, ${one.pieces} pieces in ${seconds(one.total)}`],
    claim: "Text comes in pieces, the first long before the end.",
    holds: one.pieces > 3 && one.first < 0.8 * one.total,
  };
}

/** The value below which this part of the sorted values lies. */
function quantile(sorted: number[], part: number): number {
  return sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)] ?? 0;
}

async function benchmark(engine: EngineClient): Promise<Outcome> {
  const requests = 8;
  const run = await during(engine, () => Promise.all(Array.from({ length: requests }, (_, index) =>
    ask(engine, continuation(`${index}: ${TEXTS[index % 5]!}`, 8)))));
  const latencies = run.result.map((one) => 1000 * one.total).sort((a, b) => a - b);
  const mean = latencies.reduce((sum, value) => sum + value, 0) / requests;
  const ms = (value: number) => value.toFixed(0);
  return {
    lines: [
      `num_requests ${requests}, duration_seconds ${run.seconds.toFixed(2)}, requests_per_second ${(requests / run.seconds).toFixed(2)}, tokens_per_second ${(run.tokens / run.seconds).toFixed(1)}`,
      `latency in ms: mean ${ms(mean)}, median ${ms(quantile(latencies, 0.5))}, p95 ${ms(quantile(latencies, 0.95))}, p99 ${ms(quantile(latencies, 0.99))}, min ${ms(latencies[0] ?? 0)}, max ${ms(latencies.at(-1) ?? 0)}`,
    ],
    claim: "Every request gets all its tokens.",
    holds: run.result.every((one) => one.tokens.length === 8 && one.reason === "length"),
  };
}

async function summary(engine: EngineClient): Promise<Outcome> {
  const stats = engine.latest?.report.engine.stats;
  if (!stats) throw new Error("no step has run");
  return {
    lines: [
      `${stats.steps} steps, ${stats.generated_tokens} tokens, ${stats.prefix_cache_hits} prompt tokens not computed again, ${stats.preemptions} preemptions`,
      `Blocks: ${stats.blocks_used} in use, ${stats.blocks_cached} kept for the prefix cache, ${stats.blocks_total} in all`,
    ],
    claim: "When nothing runs, no block is owned.",
    holds: stats.running > 0 || stats.blocks_used === 0,
  };
}

export const STEPS: readonly Step[] = [
  { id: "device", title: "The device", text: "Where the model computes.", run: device },
  { id: "memory", title: "Loading and memory", text: "Weights are read once; what is left is for keys and values.", run: memory },
  { id: "paging", title: "Paging", text: "Keys and values lie in blocks, as pages lie in a computer's memory. A request takes a block when it needs one.", run: paging },
  { id: "contiguous", title: "Paging against pre-allocation", text: "The same requests in the same memory, once with room for the longest answer set aside for each, once in blocks. The engine is made anew for it.", run: contiguous },
  { id: "sampling", title: "Sampling", text: "Temperature 0 takes the most likely token; higher ones draw.", run: sampling },
  { id: "batch", title: "Batching", text: "A step reads every weight once, for however many requests are in it.", run: batch },
  { id: "continuous", title: "Continuous batching", text: "A request joins and leaves the batch at any step, instead of waiting for the slowest of its group.", run: continuous },
  { id: "analysis", title: "Looking at answers", text: "What came out, why it ended, and what did not have to be computed again.", run: analysis },
  { id: "streaming", title: "Streaming", text: "A token is shown as soon as its step has run.", run: streaming },
  { id: "benchmark", title: "A benchmark", text: "Eight requests at once.", run: benchmark },
  { id: "summary", title: "Summary", text: "What the engine has done on this page so far.", run: summary },
];

/** The four tests, by the steps that make them. */
export const TESTS: Readonly<Record<string, string>> = { single: "streaming", batch: "batch", paging: "paging", sampling: "sampling" };
