// The page's side of the worker: requests in, answers out, and the newest state of the engine for the views.

import type {
  BlockToken,
  ChatRequest,
  EngineEvent,
  EngineSettings,
  FromWorker,
  ModelFacts,
  ModelSource,
  Phase,
  StepReport,
  ToWorker,
} from "./protocol";

export interface StepRecord {
  report: StepReport;
  seconds: number;
  /** Milliseconds on the engine's clock when the step had ended. */
  at: number;
  /** Steps before it that were not shown. */
  missed: number;
}

/** What the views draw: the engine of this tab, or that of a server. */
export interface Watched extends EventTarget {
  /** The last steps, newest last. An event `step` says that there is one more. */
  readonly steps: StepRecord[];
  readonly latest: StepRecord | undefined;
  /** Bytes of a token's keys and values, and the longest that a request can become. */
  readonly memory: { bytesPerToken: number; longest: number } | null;
  tokensInBlock(block: number): Promise<BlockToken[]>;
}

export interface Ready {
  facts: ModelFacts;
  adapter: string;
  /** `null`: the browser computes no hashes for this page, and nothing was checked. */
  sha256: string | null;
  fromCache: boolean;
  seconds: number;
}

export type Status =
  | { state: "empty" }
  | { state: "loading"; phase: Phase; done: number; total: number }
  | { state: "ready"; ready: Ready }
  /** `wasReady`: it had been loaded. `isLoss`: the GPU is gone, in the middle of work; `steps` is how many had run. */
  | { state: "failed"; message: string; wasReady: boolean; isLoss: boolean; steps: number };

/** What an engine is made from. */
export interface Origin {
  source: ModelSource;
  settings: EngineSettings;
}

/** Whether steps wait for the user, and the milliseconds between two of them. */
export interface Motion {
  paused: boolean;
  delay: number;
}

/** What a request hears of its own fate. */
export interface Listener {
  accepted?: (request: number, promptTokens: number, maxTokens: number | null) => void;
  scheduled?: (cachedTokens: number) => void;
  token?: (text: string, token: number) => void;
  /** Called once, last. `reason` is `stop`, `length`, `abort`, or what went wrong. */
  finished: (text: string, reason: string) => void;
}

export const STEPS_KEPT = 600;

/** WebAssembly that fails says next to nothing; when it does, memory is the likeliest reason. */
function explained(message: string): string {
  if (message === "") return "the worker's program cannot be loaded";
  return message.includes("RuntimeError") ? `the program failed, most likely for want of memory (${message}); fewer or smaller blocks need less` : message;
}

export class EngineClient extends EventTarget implements Watched {
  status: Status = { state: "empty" };
  steps: StepRecord[] = [];
  settings: EngineSettings | null = null;
  source: ModelSource | null = null;
  /** From what an engine last became ready. */
  lastGood: Origin | null = null;
  /** As the user has set it; an event `motion` says that it has changed. */
  motion: Motion = { paused: false, delay: 0 };
  /** Requests made so far, refused ones included. */
  numAdded = 0;
  /** Seconds from the first request to the first token of its answer, since the model is there. */
  firstAnswer: number | null = null;
  private firstAsked: number | null = null;
  private worker: Worker | null = null;
  private waiting = new Map<number, Listener>();
  private running = new Map<number, Listener>();
  private blocks = new Map<number, { resolve: (tokens: BlockToken[]) => void; reject: (error: Error) => void }>();
  private settled: ((ready: Ready | null) => void)[] = [];
  private nextTicket = 1;
  private program: WebAssembly.Module | null = null;

  get latest(): StepRecord | undefined {
    return this.steps.at(-1);
  }

  get memory(): Watched["memory"] {
    const facts = this.ready?.facts;
    return facts ? { bytesPerToken: facts.kv_bytes_per_token, longest: facts.max_model_len } : null;
  }

  get ready(): Ready | null {
    return this.status.state === "ready" ? this.status.ready : null;
  }

  /** Starts a fresh worker with a model; an earlier one ends, and with it what it was doing. */
  load(source: ModelSource, settings: EngineSettings): Promise<Ready | null> {
    this.end("the engine was loaded anew");
    this.source = source;
    this.settings = settings;
    this.steps = [];
    this.firstAnswer = this.firstAsked = null;
    // A new worker runs at full speed until it is told otherwise.
    this.move({ paused: false, delay: 0 });
    this.setStatus({ state: "loading", phase: "program", done: 0, total: 1 });
    this.worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    this.worker.onmessage = (event: MessageEvent<FromWorker>) => this.hear(event.data);
    this.worker.onerror = (event) => this.fail(explained(event.message));
    this.send({ type: "load", source, settings, program: this.program });
    return new Promise((resolve) => this.settled.push(resolve));
  }

  /** The same model and settings again, after a failure. */
  resume(): Promise<Ready | null> {
    if (!this.source || !this.settings) return Promise.resolve(null);
    return this.load(this.source, this.settings);
  }

  /** Requests that have not ended. */
  get numOpen(): number {
    return this.waiting.size + this.running.size;
  }

  add(request: ChatRequest, listener: Listener): void {
    this.numAdded += 1;
    if (this.status.state !== "ready") {
      listener.finished("", "the model is not loaded");
      return;
    }
    this.firstAsked ??= performance.now();
    const ticket = this.nextTicket++;
    this.waiting.set(ticket, listener);
    this.send({ type: "add", ticket, request });
  }

  abort(request: number): void {
    this.send({ type: "abort", request });
  }

  /** Ends all requests. */
  async abortAll(): Promise<void> {
    while (this.numOpen > 0) {
      [...this.running.keys()].forEach((request) => this.abort(request));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  tokensInBlock(block: number): Promise<BlockToken[]> {
    if (!this.worker) return Promise.reject(new Error("the engine is not running"));
    const ticket = this.nextTicket++;
    this.send({ type: "block", ticket, block });
    return new Promise((resolve, reject) => this.blocks.set(ticket, { resolve, reject }));
  }

  send(message: ToWorker): void {
    if (message.type === "pause") this.move({ ...this.motion, paused: message.paused });
    if (message.type === "delay") this.move({ ...this.motion, delay: message.milliseconds });
    this.worker?.postMessage(message);
  }

  private move(motion: Motion): void {
    if (motion.paused === this.motion.paused && motion.delay === this.motion.delay) return;
    this.motion = motion;
    this.dispatchEvent(new Event("motion"));
  }

  private setStatus(status: Status): void {
    this.status = status;
    this.dispatchEvent(new Event("status"));
  }

  private fail(message: string, isLoss = false): void {
    if (this.status.state === "failed") return;
    const wasReady = this.status.state === "ready";
    // First, so that requests that are made because others ended are refused.
    this.status = { state: "failed", message, wasReady, isLoss, steps: this.latest?.report.engine.stats.steps ?? 0 };
    this.end(message);
    this.settled.splice(0).forEach((settle) => settle(null));
    this.dispatchEvent(new Event("status"));
  }

  /** Ends the worker and tells every request. */
  private end(reason: string): void {
    this.worker?.terminate();
    this.worker = null;
    const listeners = [...this.waiting.values(), ...this.running.values()];
    this.waiting.clear();
    this.running.clear();
    listeners.forEach((listener) => listener.finished("", reason));
    this.blocks.forEach(({ reject }) => reject(new Error(reason)));
    this.blocks.clear();
  }

  private hear(message: FromWorker): void {
    switch (message.type) {
      case "program":
        this.program = message.module;
        break;
      case "progress":
        this.setStatus({ ...message, state: "loading" });
        break;
      case "ready":
        if (this.source && this.settings) this.lastGood = { source: this.source, settings: this.settings };
        this.setStatus({ state: "ready", ready: message });
        this.settled.splice(0).forEach((settle) => settle(message));
        break;
      case "failed":
        this.fail(message.message);
        break;
      case "lost":
        this.fail(`the browser took the GPU away (${message.message.replace(/\.$/, "")})`, true);
        break;
      case "accepted": {
        const listener = this.waiting.get(message.ticket);
        this.waiting.delete(message.ticket);
        if (listener) this.running.set(message.request, listener);
        listener?.accepted?.(message.request, message.promptTokens, message.maxTokens);
        break;
      }
      case "rejected":
        this.waiting.get(message.ticket)?.finished("", message.message);
        this.waiting.delete(message.ticket);
        break;
      case "step":
        this.steps.push({ ...message, missed: 0 });
        if (this.steps.length > STEPS_KEPT) this.steps.shift();
        message.report.events.forEach((event) => this.deliver(event));
        this.dispatchEvent(new Event("step"));
        break;
      case "block":
        this.blocks.get(message.ticket)?.resolve(message.tokens);
        this.blocks.delete(message.ticket);
        break;
    }
  }

  private deliver(event: EngineEvent): void {
    const listener = this.running.get(event.request);
    if (!listener) return;
    switch (event.kind) {
      case "scheduled":
        listener.scheduled?.(event.cached_tokens);
        break;
      case "token":
        if (this.firstAnswer === null && this.firstAsked !== null) {
          this.firstAnswer = (performance.now() - this.firstAsked) / 1000;
          this.dispatchEvent(new Event("first-answer"));
        }
        listener.token?.(event.text, event.token);
        break;
      case "finished":
        this.running.delete(event.request);
        listener.finished(event.text, event.reason);
        break;
    }
  }
}
