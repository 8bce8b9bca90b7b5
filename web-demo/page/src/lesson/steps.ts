// The lesson: ten steps and four tests. Each measures on this machine, states a claim, and says whether it holds here.

import { findDevices } from "../devices";
import { bytes } from "../dom";
import type { EngineClient } from "../engine_client";
import { ask, continuation, during, median, remake, type Measured } from "./measure";

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

async function device(engine: EngineClient): Promise<Outcome> {
  const { ready, settings } = engine;
  if (!ready || !settings) throw new Error("no model is loaded");
  const one = await ask(engine, continuation(TEXTS[0]!, 1));
  const { reason } = await findDevices();
  return {
    lines: [
      `Computes on: ${ready.adapter} (${ready.facts.device})`,
      `WebGPU in this browser: ${reason ? `not used by itself, for ${reason}` : "yes"}; processor cores: ${navigator.hardwareConcurrency}`,
      `A first token, “${one.text}”, after ${seconds(one.total)}`,
    ],
    claim: "The model is on the device that was chosen, and gives a token there.",
    holds: ready.facts.device === settings.device && one.tokens.length === 1,
  };
}

async function memory(engine: EngineClient): Promise<Outcome> {
  const ready = engine.ready;
  if (!ready) throw new Error("no model is loaded");
  const { facts } = ready;
  const slots = () => (engine.latest?.report.engine.stats.blocks_total ?? 0) * (engine.latest?.report.engine.block_size ?? 0);
  const before = slots();
  const request = await ask(engine, continuation(TEXTS[0]!, 4));
  const pool = before * facts.kv_bytes_per_token;
  return {
    lines: [
      `${facts.name}: ${(facts.num_parameters / 1e6).toFixed(1)} million numbers, ${facts.dtype}: ${bytes(facts.weight_bytes)}`,
      `Loaded in ${seconds(ready.seconds)}${ready.fromCache ? " from this browser's storage" : ""}; ${ready.sha256 ? `SHA-256 ${ready.sha256.slice(0, 16)}…` : "hash not checked"}`,
      `Keys and values: ${bytes(facts.kv_bytes_per_token)} a token, ${bytes(pool)} for a pool of ${before} slots`,
      `After a request of ${request.promptTokens + request.tokens.length} tokens: ${slots()} slots`,
    ],
    claim: "The pool for keys and values is smaller than the weights, and has the same size after a request as before.",
    holds: pool > 0 && pool < facts.weight_bytes && slots() === before,
  };
}

/** A request that grows to `length` tokens in all. */
async function grow(engine: EngineClient, length: number): Promise<Measured> {
  let words = Math.max(1, length - 4);
  let probe = await ask(engine, continuation(" a".repeat(words), 1));
  // Some tokenizers need several tokens for a word.
  for (; probe.promptTokens >= length && words > 1; probe = await ask(engine, continuation(" a".repeat(words), 1))) {
    words = Math.max(1, Math.floor((words * (length - 4)) / probe.promptTokens));
  }
  return ask(engine, continuation(" a".repeat(words), length - probe.promptTokens));
}

async function paging(engine: EngineClient): Promise<Outcome> {
  const size = engine.settings?.block_size ?? 16;
  const short = await grow(engine, 10);
  const long = await grow(engine, 200);
  const need = (length: number) => Math.ceil(length / size);
  const total = (one: Measured) => one.promptTokens + one.tokens.length;
  const used = engine.latest?.report.engine.stats.blocks_used;
  const line = (one: Measured) => `${total(one)} tokens took ${one.blocks} ${one.blocks === 1 ? "block" : "blocks"} of ${size} (${one.blocks * size} slots)`;
  return {
    lines: [line(short), line(long), `Blocks in use afterwards: ${used}`],
    claim: `10 tokens need ${need(10)} and 200 tokens ${need(200)} blocks, and all are given back.`,
    holds: total(short) === 10 && total(long) === 200 && short.blocks === need(10) && long.blocks === need(200) && used === 0,
  };
}

async function contiguous(engine: EngineClient): Promise<Outcome> {
  const before = engine.settings;
  const [model, places, requests] = [256, 3, 6];
  const many = () => Promise.all(Array.from({ length: requests }, (_, index) => ask(engine, continuation(`${index} ${TEXTS[index % 5]!}`, 6))));
  try {
    // The scheduler keeps a block back for the growth of running sequences. A contiguous sequence never grows: the
    // comparison gives it that block on top.
    await remake(engine, { block_size: model, num_blocks: places + 1, max_model_len: model, max_num_seqs: 8 });
    const whole = await during(engine, many);
    await remake(engine, { block_size: 16, num_blocks: (places * model) / 16, max_model_len: model, max_num_seqs: 8 });
    const paged = await during(engine, many);
    return {
      lines: [
        `Six requests, memory for ${places * model} tokens: ${places} requests of the longest kind.`,
        `Contiguous (one run of ${model} slots a request, and one in reserve): ${whole.runningMax} ran at once, ${whole.steps} steps`,
        `Paged (blocks of 16): ${paged.runningMax} ran at once, ${paged.steps} steps`,
      ],
      claim: `Contiguous memory runs ${places} requests at once, paging all ${requests} in the same memory, in fewer steps.`,
      holds: whole.runningMax === places && paged.runningMax === requests && paged.steps < whole.steps,
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

/** How much faster four requests must be served together than in turn. */
const BATCH_GAIN = 1.8;

async function batch(engine: EngineClient): Promise<Outcome> {
  const [tokens, rounds] = [8, 5];
  const texts = TEXTS.slice(0, 4);
  const inTurn = (run: string, tokens: number) => during(engine, async () => {
    for (const text of texts) await ask(engine, continuation(`${run} ${text}`, tokens));
  });
  const atOnce = (run: string, tokens: number) => during(engine, () => Promise.all(texts.map((text) => ask(engine, continuation(`${run} ${text}`, tokens)))));
  // Once for nothing: the first step of a shape compiles and records.
  await inTurn("0", 2);
  await atOnce("0", 2);
  const times = { inTurn: [] as number[], atOnce: [] as number[] };
  for (let round = 1; round <= rounds; round += 1) {
    // Each goes first in turn, so that a machine that becomes busier favours neither.
    const order = round % 2 === 1 ? ["inTurn", "atOnce"] as const : ["atOnce", "inTurn"] as const;
    for (const way of order) times[way].push((await (way === "inTurn" ? inTurn : atOnce)(`${round}`, tokens)).seconds);
  }
  const [alone, together] = [median(times.inTurn), median(times.atOnce)];
  const gain = alone / together;
  const all = texts.length * tokens;
  return {
    lines: [
      `Medians of ${rounds} rounds, ${tokens} tokens a request.`,
      `Four requests one after the other: ${seconds(alone)}, ${rate(all, alone)}`,
      `Four at once, as four chats ask them: ${seconds(together)}, ${rate(all, together)}`,
      `Measured gain: ${gain.toFixed(2)} times`,
    ],
    claim: `Four chats at once are served at least ${BATCH_GAIN} times as fast as one after the other.`,
    holds: gain >= BATCH_GAIN,
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

/** Percentiles and the samples from which on they say more than the largest value does. */
const PERCENTILES = [{ name: "95th percentile", part: 0.95, samples: 20 }, { name: "99th percentile", part: 0.99, samples: 100 }] as const;

/** The value below which this part of the sorted values lies. */
function quantile(sorted: number[], part: number): number {
  return sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)] ?? 0;
}

/** What a number of measured times says, a row each. */
function distribution(name: string, times: number[]): string[] {
  const sorted = times.toSorted((a, b) => a - b);
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  const supported = PERCENTILES.filter(({ samples }) => sorted.length >= samples).map(({ name, part }) => [name, quantile(sorted, part)] as const);
  const rows = [["mean", mean], ["median", median(sorted)], ...supported, ["shortest", sorted[0] ?? 0], ["longest", sorted.at(-1) ?? 0]] as const;
  return rows.map(([what, value]) => `${name}, ${what}: ${seconds(value)}`);
}

async function benchmark(engine: EngineClient): Promise<Outcome> {
  const lengths = [4, 5, 6, 7, 8, 9, 10, 11];
  const run = await during(engine, () => Promise.all(lengths.map((length, index) => ask(engine, continuation(`${index}: ${TEXTS[index % 5]!}`, length)))));
  return {
    lines: [
      `Requests: ${lengths.length}, of ${lengths[0]} to ${lengths.at(-1)} new tokens`,
      `Duration: ${seconds(run.seconds)}`,
      `Throughput: ${(lengths.length / run.seconds).toFixed(2)} requests/s, ${rate(run.tokens, run.seconds)}`,
      `First token, median: ${seconds(median(run.result.map((one) => one.first)))}`,
      ...distribution("Latency", run.result.map((one) => one.total)),
    ],
    claim: "Every request gets all its tokens.",
    holds: run.result.every((one, index) => one.tokens.length === lengths[index] && one.reason === "length"),
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
