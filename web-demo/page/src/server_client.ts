// A running server as the views see it: its event stream of steps, and the tokens of its blocks on demand.

import { STEPS_KEPT, type StepRecord, type Watched } from "./engine_client";
import type { BlockToken, EngineSnapshot, RowSnapshot } from "./protocol";

/** The first event of the stream. */
export interface ServerFacts {
  model: string;
  device: string;
  version: string;
  max_model_len: number;
  max_num_seqs: number;
  kv_bytes_per_token: number;
  enable_prefix_caching: boolean;
}

interface ServerStep {
  missed: number;
  seconds: number;
  at_ms: number;
  rows: RowSnapshot[];
  engine: EngineSnapshot;
}

export type Connection =
  | { state: "connecting" }
  | { state: "watching"; facts: ServerFacts }
  /** Broken off; tried again after so many seconds, or not at all. */
  | { state: "ended"; message: string; again: number | null };

/** Trouble that trying again does not mend. */
class Refused extends Error {}

/** Seconds until the first new try; they double up to the second. */
const PAUSES = [1, 15] as const;

export class ServerClient extends EventTarget implements Watched {
  steps: StepRecord[] = [];
  connection: Connection = { state: "connecting" };
  private facts: ServerFacts | null = null;
  private readonly closing = new AbortController();

  /** `base` ends in a slash: the paths of the API lie below it. */
  constructor(private readonly base: URL, private readonly key: string) {
    super();
    void this.run();
  }

  get latest(): StepRecord | undefined {
    return this.steps.at(-1);
  }

  get memory(): Watched["memory"] {
    return this.facts ? { bytesPerToken: this.facts.kv_bytes_per_token, longest: this.facts.max_model_len } : null;
  }

  async tokensInBlock(block: number): Promise<BlockToken[]> {
    const response = await this.get(`v1/trace/blocks/${block}`).catch(() => {
      throw new Error(`${this.base.origin} does not answer`);
    });
    if (!response.ok) throw new Error(await problemOf(response));
    return ((await response.json()) as { tokens: BlockToken[] }).tokens;
  }

  /** Watches no more. */
  close(): void {
    this.closing.abort();
  }

  private get(path: string): Promise<Response> {
    return fetch(new URL(path, this.base), { headers: { Authorization: `Bearer ${this.key}` }, signal: this.closing.signal, cache: "no-store" });
  }

  private set(connection: Connection): void {
    this.connection = connection;
    this.dispatchEvent(new Event("connection"));
  }

  private async run(): Promise<void> {
    let pause: number = PAUSES[0];
    while (!this.closing.signal.aborted) {
      this.set({ state: "connecting" });
      const problem = await this.watch(() => (pause = PAUSES[0])).catch((error: Error) => error);
      if (this.closing.signal.aborted) return;
      const again = problem instanceof Refused ? null : pause;
      this.set({ state: "ended", message: problem.message, again });
      if (again === null) return;
      await new Promise((resolve) => setTimeout(resolve, 1000 * again));
      pause = Math.min(2 * pause, PAUSES[1]);
    }
  }

  /** Reads the stream to its end, which is an error that says why. */
  private async watch(connected: () => void): Promise<Error> {
    const response = await this.get("v1/trace").catch(() => null);
    if (!response) {
      const origin = location.origin === this.base.origin ? "" : `, or does not let this page in: start it with --allowed-origins '["${location.origin}"]'`;
      return new Error(`${this.base.origin} does not answer${origin}`);
    }
    if (response.status === 401) return new Refused("the server wants another key: the one that it was given as --admin-key");
    if (response.status === 404) return new Refused("the server does not show its engine: start it with --trace --admin-key KEY");
    if (!response.ok || !response.body) return new Error(await problemOf(response));
    connected();
    let reason = "the connection broke off";
    for await (const { name, data } of events(response.body)) {
      if (name === "server") this.begin(JSON.parse(data) as ServerFacts);
      else if (name === "end") reason = (JSON.parse(data) as { reason: string }).reason;
      else if (name === "") this.hear(JSON.parse(data) as ServerStep);
    }
    return new Error(reason);
  }

  private begin(facts: ServerFacts): void {
    this.facts = facts;
    this.steps = [];
    this.set({ state: "watching", facts });
  }

  private hear(step: ServerStep): void {
    const { missed, seconds, at_ms: at, rows, engine } = step;
    this.steps.push({ report: { events: [], rows, engine }, seconds, at, missed });
    if (this.steps.length > STEPS_KEPT) this.steps.shift();
    this.dispatchEvent(new Event("step"));
  }
}

/** What the server says is wrong. */
async function problemOf(response: Response): Promise<string> {
  const body = (await response.json().catch(() => null)) as { error?: { message?: string } } | null;
  return `the server answers ${response.status}${body?.error?.message ? `: ${body.error.message}` : ""}`;
}

/** Server-sent events. The browser's own reader of them cannot send a key. */
async function* events(body: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<{ name: string; data: string }> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true, value: undefined }));
      if (done || value === undefined) return;
      const whole = (rest + value).split("\n\n");
      rest = whole.pop() ?? "";
      for (const event of whole) yield parse(event);
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}

function parse(event: string): { name: string; data: string } {
  let name = "";
  const data: string[] = [];
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  // A comment, which keeps the connection open, is an event of no known name.
  return data.length > 0 ? { name, data: data.join("\n") } : { name: "comment", data: "" };
}
