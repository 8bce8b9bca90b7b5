// One conversation: its turns, its own sampling settings, and the request that is answering it now.

import { el, hue } from "./dom";
import type { EngineClient } from "./engine_client";
import { render } from "./markdown";
import { PRESETS, type Preset } from "./presets";
import type { Turn } from "./protocol";

interface Stored {
  system: string;
  turns: Turn[];
  preset: string;
  /** The last answer was cut off and can be continued. */
  interrupted: boolean;
}

export class Chat {
  readonly element: HTMLElement;
  private turns: Turn[] = [];
  private interrupted = false;
  /** The answer was cut off by a failure, not by the user or a limit. */
  private failed = false;
  private request: number | null = null;
  private answering = false;
  private stopWanted = false;
  private started = 0;
  private tokens = 0;
  private readonly log: HTMLElement;
  private readonly note: HTMLElement;
  private readonly input: HTMLTextAreaElement;
  private readonly system: HTMLTextAreaElement;
  private readonly preset: HTMLSelectElement;
  private readonly submit: HTMLButtonElement;
  private readonly stopButton: HTMLButtonElement;
  private readonly badge: HTMLElement;

  constructor(private readonly engine: EngineClient, readonly number: number, preset: string) {
    const id = `chat-${number}`;
    this.log = el("div", { class: "log", role: "log", "aria-live": "off", "aria-label": `Conversation ${number}`, tabindex: 0 });
    this.note = el("p", { class: "note", role: "status" });
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
    this.preset = el("select", { id: `${id}-preset`, "aria-label": `Sampling of chat ${number}` });
    PRESETS.forEach(({ name, hint }) => this.preset.append(el("option", { value: name, title: hint }, name)));
    this.preset.value = preset;
    this.preset.addEventListener("change", () => this.store());
    this.submit = el("button", { type: "submit", class: "primary" }, "Send");
    this.stopButton = el("button", { type: "button", class: "stop", hidden: true, onclick: () => this.stop() }, "Stop");
    const form = el("form", { onsubmit: (event) => { event.preventDefault(); this.send(); } }, this.input, this.submit, this.stopButton);
    this.element = el(
      "section",
      { class: "chat", "aria-labelledby": `${id}-title` },
      el("header", {}, el("h3", { id: `${id}-title` }, `Chat ${number}`), this.badge, this.preset,
        el("button", { type: "button", class: "quiet", "aria-label": `Clear chat ${number}`, title: "Clear", onclick: () => this.clear() }, "✕")),
      el("details", {}, el("summary", {}, "System prompt"), this.system),
      this.log, this.note, form,
    );
    this.restore();
    this.draw();
  }

  get isAnswering(): boolean {
    return this.answering;
  }

  get canContinue(): boolean {
    return this.interrupted && !this.answering;
  }

  /** Whether the answer should go on once the engine is there again. */
  get wasCutOff(): boolean {
    return this.failed && this.canContinue;
  }

  /** Sends a text, or what is in the box. */
  send(text = this.input.value.trim()): void {
    if (!text || this.answering) return;
    this.input.value = "";
    this.turns.push({ role: "user", content: text }, { role: "assistant", content: "" });
    this.answer();
  }

  stop(): void {
    this.stopWanted = true;
    if (this.request !== null) this.engine.abort(this.request);
  }

  /** Goes on with an answer that was cut off. */
  continue(): void {
    if (this.canContinue) this.answer();
  }

  private regenerate(): void {
    const last = this.turns.at(-1);
    if (this.answering || last?.role !== "assistant") return;
    last.content = "";
    this.answer();
  }

  private clear(): void {
    this.stop();
    this.turns = [];
    this.interrupted = false;
    this.note.textContent = "";
    this.store();
    this.draw();
    this.input.focus();
  }

  private answer(): void {
    const answer = this.turns.at(-1);
    if (!answer) return;
    const preset = this.chosen();
    const messages: Turn[] = this.turns.slice(0, -1).map((turn) => ({ ...turn }));
    if (this.system.value.trim()) messages.unshift({ role: "system", content: this.system.value.trim() });
    this.answering = true;
    this.interrupted = false;
    this.failed = false;
    this.stopWanted = false;
    this.tokens = 0;
    this.started = performance.now();
    this.note.textContent = "waiting";
    this.engine.add({ messages, text: answer.content, sampling: preset.sampling, stop: preset.stop, fit: true }, {
      accepted: (request, promptTokens, maxTokens) => {
        this.request = request;
        this.element.style.setProperty("--hue", String(hue(request)));
        this.badge.textContent = `request ${request}`;
        const limited = maxTokens !== null && maxTokens < (preset.sampling.max_tokens ?? Infinity);
        this.note.textContent = `${promptTokens} prompt tokens${limited ? `, room for ${maxTokens} more` : ""}`;
        if (this.stopWanted) this.engine.abort(request);
      },
      scheduled: (cached) => {
        if (cached > 0) this.note.textContent += `, ${cached} from the prefix cache`;
      },
      token: (text) => {
        this.tokens += 1;
        answer.content += text;
        this.drawAnswer();
      },
      finished: (text, reason) => this.finish(answer, text, reason),
    });
    this.store();
    this.draw();
  }

  private finish(answer: Turn, text: string, reason: string): void {
    answer.content += text;
    this.answering = false;
    this.request = null;
    this.badge.textContent = "";
    const seconds = (performance.now() - this.started) / 1000;
    const rate = `${this.tokens} tokens in ${seconds.toFixed(1)} s`;
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
  }

  private chosen(): Preset {
    return PRESETS.find(({ name }) => name === this.preset.value) ?? PRESETS[0]!;
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
    this.submit.hidden = this.answering;
    this.stopButton.hidden = !this.answering;
    this.element.classList.toggle("answering", this.answering);
    this.log.replaceChildren(...this.turns.map((turn, index) => this.turn(turn, index === this.turns.length - 1)));
    this.log.scrollTop = this.log.scrollHeight;
  }

  private turn(turn: Turn, isLast: boolean): HTMLElement {
    const text = el("div", { class: "text" });
    if (turn.role === "assistant") text.innerHTML = render(turn.content);
    else text.textContent = turn.content;
    const isAnswer = turn.role === "assistant" && !this.answering;
    const actions = isAnswer && el("div", { class: "actions" },
      el("button", { type: "button", class: "quiet", onclick: () => void navigator.clipboard?.writeText(turn.content) }, "Copy"),
      isLast && el("button", { type: "button", class: "quiet", onclick: () => this.regenerate() }, "Regenerate"),
      isLast && this.interrupted && el("button", { type: "button", class: "quiet", onclick: () => this.continue() }, "Continue"));
    return el("article", { class: `turn ${turn.role}` }, text, actions);
  }

  private key(): string {
    return `firebrick-chat-${this.number}`;
  }

  /** Keeps the conversation for a reload of the page. */
  store(): void {
    const stored: Stored = {
      system: this.system.value,
      turns: this.turns,
      preset: this.preset.value,
      interrupted: this.answering || this.interrupted,
    };
    try {
      sessionStorage.setItem(this.key(), JSON.stringify(stored));
    } catch {
      // Full or forbidden: the conversation then lives as long as the page.
    }
  }

  private restore(): void {
    try {
      const stored = JSON.parse(sessionStorage.getItem(this.key()) ?? "null") as Stored | null;
      if (!stored) return;
      this.turns = stored.turns;
      this.system.value = stored.system;
      this.preset.value = stored.preset;
      this.interrupted = stored.interrupted;
      if (stored.interrupted) this.note.textContent = "the answer was cut off; Continue goes on with it";
    } catch {
      // Nothing usable was stored.
    }
  }
}
