// One conversation: its turns, its own sampling settings, and the request that is answering it now.

import { copyButton } from "./copy_button";
import { colour, el } from "./dom";
import type { EngineClient } from "./engine_client";
import { render } from "./markdown";
import type { Turn } from "./protocol";
import type { RequestNames } from "./request_names";
import { SamplingForm, type StoredSampling } from "./sampling_form";

interface Stored extends StoredSampling {
  system: string;
  turns: Turn[];
  /** The last answer was cut off and can be continued. */
  interrupted: boolean;
}

/** An answer that is being made. A conversation that was cleared meanwhile has another one, or none. */
interface Run {
  /** Known once the engine has accepted it. */
  request: number | null;
  stopWanted: boolean;
  tokens: number;
  readonly started: number;
}

const keyOf = (chat: number) => `firebrick-chat-${chat}`;

export class Chat {
  readonly element: HTMLElement;
  private turns: Turn[] = [];
  private interrupted = false;
  /** The answer was cut off by a failure, not by the user or a limit. */
  private failed = false;
  private run: Run | null = null;
  private frame = 0;
  private readonly log: HTMLElement;
  private readonly note: HTMLElement;
  private readonly input: HTMLTextAreaElement;
  private readonly system: HTMLTextAreaElement;
  private readonly sampling: SamplingForm;
  private readonly submit: HTMLButtonElement;
  private readonly stopButton: HTMLButtonElement;
  private readonly badge: HTMLElement;
  /** For screen readers, which do not read an answer while it grows. */
  private readonly spoken: HTMLElement;

  constructor(private readonly engine: EngineClient, private readonly names: RequestNames, readonly number: number, preset: string) {
    const id = `chat-${number}`;
    this.log = el("div", { class: "log", role: "log", "aria-live": "off", "aria-label": `Conversation ${number}`, tabindex: 0 });
    this.note = el("p", { class: "note" });
    this.spoken = el("p", { class: "hidden spoken", role: "status" });
    this.badge = el("span", { class: "badge" });
    this.input = el("textarea", { rows: 1, id: `${id}-input`, placeholder: "Ask something", "aria-label": `Message for chat ${number}` });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    this.system = el("textarea", { rows: 2, id: `${id}-system`, "aria-label": `System prompt of chat ${number}`, placeholder: "System prompt (none: the model's own)" });
    this.system.addEventListener("change", () => this.store());
    this.sampling = new SamplingForm(number, preset, () => this.store());
    this.submit = el("button", { type: "submit", class: "primary" }, "Send");
    this.stopButton = el("button", { type: "button", class: "stop", hidden: true, onclick: () => this.stop() }, "Stop");
    const form = el("form", { onsubmit: (event) => { event.preventDefault(); this.send(); } }, this.input, this.submit, this.stopButton);
    this.element = el(
      "section",
      { class: "chat", "aria-labelledby": `${id}-title` },
      el("header", {}, el("h3", { id: `${id}-title` }, `Chat ${number}`), this.badge, this.sampling.presets,
        el("button", { type: "button", class: "quiet", "aria-label": `Clear chat ${number}`, title: "Clear", onclick: () => this.clear() }, "✕")),
      el("div", { class: "settings" }, el("details", {}, el("summary", {}, "System prompt"), this.system), this.sampling.details),
      this.log, this.note, this.spoken, form,
    );
    this.restore();
    this.draw();
  }

  get isAnswering(): boolean {
    return this.run !== null;
  }

  get canContinue(): boolean {
    return this.interrupted && !this.isAnswering;
  }

  /** Whether the answer should go on once the engine is there again. */
  get wasCutOff(): boolean {
    return this.failed && this.canContinue;
  }

  /** Whether an earlier visit of this tab left such a conversation. */
  static isStored(number: number): boolean {
    try {
      return sessionStorage.getItem(keyOf(number)) !== null;
    } catch {
      return false;
    }
  }

  /** Sends a text, or what is in the box. */
  send(text = this.input.value.trim()): void {
    if (!text || this.isAnswering || !this.sampling.check()) return;
    this.input.value = "";
    this.turns.push({ role: "user", content: text }, { role: "assistant", content: "" });
    this.answer();
  }

  stop(): void {
    if (!this.run) return;
    this.run.stopWanted = true;
    if (this.run.request !== null) this.engine.abort(this.run.request);
  }

  /** Goes on with an answer that was cut off. */
  continue(): void {
    if (this.canContinue && this.sampling.check()) this.answer();
  }

  private regenerate(): void {
    const last = this.turns.at(-1);
    if (this.isAnswering || last?.role !== "assistant" || !this.sampling.check()) return;
    last.content = "";
    this.answer();
  }

  private clear(): void {
    this.stop();
    this.run = null;
    this.turns = [];
    this.interrupted = false;
    this.note.textContent = "";
    this.showRequest(null);
    this.store();
    this.draw();
    this.input.focus();
  }

  private answer(): void {
    const answer = this.turns.at(-1);
    if (!answer) return;
    const { sampling, stop } = this.sampling;
    const messages: Turn[] = this.turns.slice(0, -1).map((turn) => ({ ...turn }));
    if (this.system.value.trim()) messages.unshift({ role: "system", content: this.system.value.trim() });
    const run: Run = { request: null, stopWanted: false, tokens: 0, started: performance.now() };
    this.run = run;
    this.interrupted = false;
    this.failed = false;
    this.note.textContent = "waiting";
    this.engine.add({ messages, text: answer.content, sampling, stop, fit: true }, {
      accepted: (request, promptTokens, maxTokens) => {
        run.request = request;
        if (run.stopWanted) this.engine.abort(request);
        if (this.run !== run) return;
        this.showRequest(request);
        const limited = maxTokens !== null && maxTokens < (sampling.max_tokens ?? Infinity);
        this.note.textContent = `${promptTokens} prompt tokens${limited ? `, room for ${maxTokens} more` : ""}`;
      },
      scheduled: (cached) => {
        if (this.run === run && cached > 0) this.note.textContent += `, ${cached} from the prefix cache`;
      },
      token: (text) => {
        if (this.run !== run) return;
        run.tokens += 1;
        answer.content += text;
        this.drawAnswerSoon();
      },
      finished: (text, reason) => {
        if (this.run === run) this.finish(run, answer, text, reason);
      },
    });
    this.store();
    this.draw();
  }

  private finish(run: Run, answer: Turn, text: string, reason: string): void {
    answer.content += text;
    this.run = null;
    this.showRequest(null);
    const seconds = (performance.now() - run.started) / 1000;
    const rate = `${run.tokens} tokens in ${seconds.toFixed(1)} s`;
    switch (reason) {
      case "stop":
        this.note.textContent = rate;
        break;
      case "length":
        this.note.textContent = `${rate}, at the limit`;
        this.interrupted = true;
        break;
      case "abort":
        this.note.textContent = `${rate}, stopped`;
        this.interrupted = true;
        break;
      default:
        this.note.textContent = reason;
        this.interrupted = true;
        this.failed = true;
    }
    this.store();
    this.draw();
    const said = this.log.lastElementChild?.querySelector(".text")?.textContent?.trim();
    this.spoken.textContent = `Chat ${this.number}, ${this.note.textContent}: ${said}`;
  }

  /** The request by which the views show this conversation, as long as it exists. */
  private showRequest(request: number | null): void {
    this.badge.textContent = request === null ? "" : `request ${request}`;
    if (request === null) {
      this.element.style.removeProperty("--colour");
    } else {
      this.names.set(request, `Chat ${this.number}`);
      this.element.style.setProperty("--colour", colour(request));
    }
  }

  /** At most once a frame: an answer is made into HTML as a whole. */
  private drawAnswerSoon(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.isAnswering) this.drawAnswer();
    });
  }

  private drawAnswer(): void {
    const body = this.log.lastElementChild?.querySelector(".text");
    const answer = this.turns.at(-1);
    if (!body || !answer) return;
    const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
    body.innerHTML = render(answer.content);
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  private draw(): void {
    this.submit.hidden = this.isAnswering;
    this.stopButton.hidden = !this.isAnswering;
    this.element.classList.toggle("answering", this.isAnswering);
    this.log.replaceChildren(...this.turns.map((turn, index) => this.turn(turn, index === this.turns.length - 1)));
    this.log.scrollTop = this.log.scrollHeight;
  }

  private turn(turn: Turn, isLast: boolean): HTMLElement {
    const text = el("div", { class: "text" });
    if (turn.role === "assistant") text.innerHTML = render(turn.content);
    else text.textContent = turn.content;
    const isAnswer = turn.role === "assistant" && !this.isAnswering;
    const actions = isAnswer && el("div", { class: "actions" },
      copyButton(turn.content, (reason) => (this.note.textContent = this.spoken.textContent = reason)),
      isLast && el("button", { type: "button", class: "quiet", onclick: () => this.regenerate() }, "Regenerate"),
      isLast && this.interrupted && el("button", { type: "button", class: "quiet", onclick: () => this.continue() }, "Continue"));
    return el("article", { class: `turn ${turn.role}` }, text, actions);
  }

  /** Keeps the conversation for a reload of the page. */
  store(): void {
    const stored: Stored = {
      ...this.sampling.stored,
      system: this.system.value,
      turns: this.turns,
      interrupted: this.isAnswering || this.interrupted,
    };
    try {
      sessionStorage.setItem(keyOf(this.number), JSON.stringify(stored));
    } catch {
      // Full or forbidden: the conversation then lives as long as the page.
    }
  }

  private restore(): void {
    try {
      const stored = JSON.parse(sessionStorage.getItem(keyOf(this.number)) ?? "null") as Stored | null;
      if (!stored) return;
      this.turns = stored.turns;
      this.system.value = stored.system;
      this.sampling.restore(stored);
      this.interrupted = stored.interrupted && stored.turns.at(-1)?.role === "assistant";
      if (this.interrupted) this.note.textContent = "the answer was cut off; Continue goes on with it";
    } catch {
      // Nothing usable was stored.
    }
  }
}
