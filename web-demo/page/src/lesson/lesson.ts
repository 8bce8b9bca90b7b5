// The lesson as a list: each step runs on its own, or all in turn.

import { el } from "../dom";
import type { EngineClient } from "../engine_client";
import { STEPS, TESTS, type Step } from "./steps";

export class Lesson {
  readonly element: HTMLElement;
  private busy = false;
  private readonly cards = new Map<string, HTMLElement>();

  constructor(private readonly engine: EngineClient) {
    const all = (ids: string[]) => () => void this.run(STEPS.filter((step) => ids.includes(step.id)));
    this.element = el("div", {},
      el("p", {}, "Every number is measured here and now, and every claim is checked."),
      el("div", { class: "motion" },
        el("button", { type: "button", class: "primary", onclick: all(STEPS.map((step) => step.id)) }, "Run the whole lesson"),
        el("button", { type: "button", onclick: all(Object.values(TESTS)) }, "The four tests: single, batch, paging, sampling")),
      el("ol", { class: "lesson" }, ...STEPS.map((step) => this.card(step))));
  }

  private card(step: Step): HTMLElement {
    const result = el("div", { class: "result", role: "status" });
    const card = el("li", { class: "step", id: `lesson-${step.id}` },
      el("h4", {}, step.title), el("p", {}, step.text),
      el("button", { type: "button", onclick: () => void this.run([step]) }, "Run"), result);
    this.cards.set(step.id, card);
    return card;
  }

  private async run(steps: Step[]): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    for (const step of steps) await this.runStep(step);
    this.busy = false;
  }

  private async runStep(step: Step): Promise<void> {
    const card = this.cards.get(step.id)!;
    const result = card.querySelector(".result")!;
    card.dataset["state"] = "running";
    result.textContent = "measuring …";
    try {
      const outcome = await step.run(this.engine);
      card.dataset["state"] = outcome.holds ? "holds" : "fails";
      const verdict = `${outcome.holds ? "✓" : "✗"} ${outcome.claim}${outcome.holds ? "" : " That does not hold on this machine."}`;
      result.replaceChildren(...outcome.lines.map((line) => el("p", { class: "measured" }, line)), el("p", { class: "verdict" }, verdict));
    } catch (error) {
      card.dataset["state"] = "fails";
      result.replaceChildren(el("p", { class: "verdict" }, `✗ could not be run: ${error instanceof Error ? error.message : String(error)}`));
    }
  }
}
