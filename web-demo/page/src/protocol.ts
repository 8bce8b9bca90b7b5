// What the page, the worker and the engine say to each other. The engine's part is the JSON of `web-demo/src/messages.rs`
// and of `EngineSnapshot` in `crates/engine`.

export type DeviceName = "webgpu" | "cpu";

export interface EngineSettings {
  device: DeviceName;
  block_size: number;
  num_blocks: number;
  max_num_batched_tokens: number;
  max_num_seqs: number;
  max_model_len: number;
  enable_prefix_caching: boolean;
  seed: number;
}

export interface ModelFacts {
  name: string;
  architecture: string;
  device: DeviceName;
  dtype: string;
  num_parameters: number;
  num_layers: number;
  vocab_size: number;
  weight_bytes: number;
  kv_bytes_per_token: number;
  max_model_len: number;
  has_chat_template: boolean;
}

export interface Turn {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface Sampling {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  max_tokens?: number;
  seed?: number;
  frequency_penalty?: number;
  presence_penalty?: number;
  repetition_penalty?: number;
}

export interface ChatRequest {
  messages?: Turn[];
  text?: string;
  sampling?: Sampling;
  stop?: string[];
  ignore_eos?: boolean;
  fit?: boolean;
}

export interface SequenceId {
  request: number;
  index: number;
}

export interface BlockSnapshot {
  references: number;
  cached: boolean;
}

export interface SequenceSnapshot {
  id: SequenceId;
  state: "Running" | "Waiting" | "Preempted";
  prompt_tokens: number;
  tokens: number;
  computed_tokens: number;
  published_blocks: number;
  blocks: number[];
  /** Entries at the table's end that are not shown. */
  blocks_left_out: number;
}

export interface RowSnapshot {
  sequence: SequenceId;
  position: number;
  tokens: number;
  samples: boolean;
}

export interface EngineStats {
  running: number;
  waiting: number;
  blocks_total: number;
  blocks_used: number;
  blocks_cached: number;
  steps: number;
  prefix_cache_queries: number;
  prefix_cache_hits: number;
  preemptions: number;
  prompt_tokens: number;
  generated_tokens: number;
  computed_tokens: number;
  last_step_tokens: number;
  last_step_sequences: number;
}

export interface EngineSnapshot {
  block_size: number;
  max_num_batched_tokens: number;
  blocks: BlockSnapshot[];
  sequences: SequenceSnapshot[];
  rows: RowSnapshot[];
  stats: EngineStats;
}

export type EngineEvent =
  | { kind: "scheduled"; request: number; cached_tokens: number }
  | { kind: "token"; request: number; token: number; text: string }
  | { kind: "finished"; request: number; text: string; reason: string };

export interface StepReport {
  events: EngineEvent[];
  rows: RowSnapshot[];
  engine: EngineSnapshot;
  /** Shapes of steps that are replayed from a recording by now; only of an engine in this tab. */
  num_graphs?: number;
  /** The engine's invariants were proved after this step, as was asked for. */
  audited?: boolean;
}

export interface BlockToken {
  token: number;
  text: string;
}

export interface ModelEntry {
  name: string;
  file: string;
  bytes: number;
  sha256: string;
}

export type ModelSource =
  | { kind: "listed"; entry: ModelEntry }
  | { kind: "hub"; id: string; endpoint: string }
  | { kind: "files"; name: string; files: File[] };

export interface Load {
  type: "load";
  source: ModelSource;
  settings: EngineSettings;
  /** The program, where an earlier worker has compiled it. */
  program: WebAssembly.Module | null;
}

export type ToWorker =
  | Load
  | { type: "add"; ticket: number; request: ChatRequest }
  | { type: "abort"; request: number }
  | { type: "pause"; paused: boolean }
  | { type: "single-step" }
  /** Proves the engine's invariants after every step from now on; one that does not hold ends the worker. */
  | { type: "audit" }
  | { type: "delay"; milliseconds: number }
  | { type: "block"; ticket: number; block: number }
  | { type: "lose-device" };

export type Phase = "program" | "fetch" | "cache" | "hash" | "weights";

export type FromWorker =
  | { type: "program"; module: WebAssembly.Module }
  | { type: "progress"; phase: Phase; done: number; total: number }
  | { type: "ready"; facts: ModelFacts; adapter: string; sha256: string | null; fromCache: boolean; seconds: number }
  | { type: "failed"; message: string }
  | { type: "lost"; message: string }
  | { type: "accepted"; ticket: number; request: number; promptTokens: number; maxTokens: number | null }
  | { type: "rejected"; ticket: number; message: string }
  | { type: "step"; report: StepReport; seconds: number; at: number }
  | { type: "block"; ticket: number; tokens: BlockToken[] };
