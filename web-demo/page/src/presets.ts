// Ways to sample, as the documents name them.

import type { Sampling } from "./protocol";

export interface Preset {
  name: string;
  hint: string;
  sampling: Sampling;
  stop: string[];
}

export const PRESETS: readonly Preset[] = [
  { name: "deterministic", hint: "always the most likely token", sampling: { temperature: 0, top_p: 1, max_tokens: 512 }, stop: [] },
  { name: "balanced", hint: "temperature 0.7", sampling: { temperature: 0.7, top_p: 0.9, max_tokens: 512, frequency_penalty: 0.1, presence_penalty: 0.1 }, stop: [] },
  { name: "creative", hint: "temperature 1.0, 50 candidates", sampling: { temperature: 1, top_p: 0.95, top_k: 50, max_tokens: 1024 }, stop: [] },
  { name: "code", hint: "temperature 0.2, ends at ```", sampling: { temperature: 0.2, top_p: 0.95, max_tokens: 2048 }, stop: ["```\n"] },
  { name: "chat", hint: "temperature 0.7, repetition penalty 1.1", sampling: { temperature: 0.7, top_p: 0.9, max_tokens: 512, repetition_penalty: 1.1 }, stop: ["User:", "Human:"] },
];
