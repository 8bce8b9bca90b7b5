// The lesson as a list: each step runs on its own, or all in turn.

import { el } from "../dom";
import type { EngineClient } from "../engine_client";
import { Disturbances } from "./measure";
import { findObstacle, type Obstacle } from "./obstacle";
import { type Outcome, STEPS, type Step, TESTS } from "./steps";

export interface Surroundings {
  /** Ends pauses and slow motion. */
  fullSpeed: () => void;
  /** Called before the engine is used, perhaps made anew. What it returns lets answers go on that were cut off meanwhile. */
  begin: () => () => void;
}

export class Lesson {
  readonly element: HTMLElement;
  private busy = false;
  private readonly cards = new Map<string, HTMLElement>();

  constructor(private readonly engine: EngineClient, private readonly surroundings: Surroundings) {
    const all = (ids: string[]) => () => void this.run(STEPS.filter((step) => ids.includes(step.id)));
    this.element = el("div", {},
      el("p", {}, "Every number is measured here and now, and every claim is checked."),
      el("div", { class: "motion" },
        el("button", { type: "button", class: "primary", onclick: all(STEPS.map((step) => step.id)) }, "Run the whole lesson"),
        el("button", { type: "button", onclick: all(Object.values(TESTS)) }, "The four tests: single, batch, paging, sampling")),
      el("ol", { class: "lesson" }, ...STEPS.map((step) => this.card(step))));
    engine.addEventListener("motion", () => this.showPause());
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
    this.setBusy(true);
    const goOn = this.surroundings.begin();
    let obstacle: Obstacle | null = null;
    const left = [...steps];
    for (let step = left[0]; step; step = left[0]) {
      obstacle = findObstacle(this.engine, this.surroundings.fullSpeed);
      if (obstacle) break;
      await this.runStep(step);
      left.shift();
    }
    this.setBusy(false);
    goOn();
    if (obstacle) this.showObstacle(obstacle, left);
  }

  /** One measurement at a time. */
  private setBusy(busy: boolean): void {
    this.busy = busy;
    this.element.querySelectorAll("button").forEach((button) => (button.disabled = busy));
  }

  private result(step: Step): HTMLElement {
    return this.cards.get(step.id)!.querySelector<HTMLElement>(".result")!;
  }

  /** Why the first of these steps does not run, and what helps; then they run. */
  private showObstacle({ text, remedy }: Obstacle, steps: Step[]): void {
    const [first] = steps;
    if (!first) return;
    this.cards.get(first.id)!.dataset["state"] = "waits";
    const help = remedy && el("button", { type: "button", onclick: () => void remedy.apply().then(() => this.run(steps)) }, remedy.label);
    this.result(first).replaceChildren(el("p", { class: "warning" }, text), help ?? "");
  }

  private async runStep(step: Step): Promise<void> {
    const card = this.cards.get(step.id)!;
    const result = this.result(step);
    card.dataset["state"] = "running";
    result.textContent = "measuring …";
    const disturbances = new Disturbances(this.engine);
    try {
      const outcome = await step.run(this.engine);
      const disturbance = disturbances.end();
      if (disturbance) throw new Error(`${disturbance}, which was measured too: run it again`);
      card.dataset["state"] = outcome.holds ? "holds" : "fails";
      result.replaceChildren(...lines(outcome));
    } catch (error) {
      disturbances.end();
      card.dataset["state"] = "fails";
      result.replaceChildren(el("p", { class: "verdict" }, `✗ could not be measured: ${error instanceof Error ? error.message : String(error)}`));
    }
  }

  /** A step that is being measured says when it waits for the user. */
  private showPause(): void {
    const running = this.element.querySelector('[data-state="running"] .result');
    if (running) running.textContent = this.engine.motion.paused ? "The engine is paused: press Pause once more, then measure again." : "measuring …";
  }
}

function lines(outcome: Outcome): HTMLElement[] {
  const verdict = `${outcome.holds ? "✓" : "✗"} ${outcome.claim}${outcome.holds ? "" : " That does not hold on this machine."}`;
  return [...outcome.lines.map((line) => el("p", { class: "measured" }, line)), el("p", { class: "verdict" }, verdict)];
}
