// The batches of the last steps, one column a step and one row a request: long prefill chunks, single decoded tokens,
// and preemptions; below it the tokens of each step against the budget.

import { el, hue } from "../dom";
import type { StepRecord } from "../engine_client";

const COLUMN = 14;
const ROW = 20;
const BUDGET_HEIGHT = 48;
const LEFT = 84;
/** Requests drawn, the newest ones: a large server runs hundreds at once. */
const REQUESTS_MAX = 40;

export class Timeline {
  readonly element: HTMLElement;
  private readonly canvas = el("canvas", { role: "img", "aria-label": "Batch timeline" });
  private readonly words = el("p", { class: "detail", id: "timeline-words" });

  constructor() {
    this.element = el("div", {}, el("h3", {}, "Batch timeline"),
      el("p", { class: "summary" }, "One column a step. Tall marks are prefill chunks with their number of tokens, dots are single decoded tokens, crosses are preemptions. A dotted line stands for steps that were not shown."),
      el("div", { class: "scroll" }, this.canvas), this.words);
  }

  draw(steps: StepRecord[]): void {
    const width = Math.max(280, this.element.clientWidth || 600);
    const shown = steps.filter((step) => step.report.rows.length > 0).slice(-Math.floor((width - LEFT) / COLUMN));
    const requests = [...new Set(shown.flatMap((step) => step.report.rows.map((row) => row.sequence.request)))].sort((a, b) => a - b).slice(-REQUESTS_MAX);
    const height = requests.length * ROW + BUDGET_HEIGHT + 8;
    const scale = globalThis.devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.scale(scale, scale);
    const style = getComputedStyle(this.element);
    const ink = style.getPropertyValue("--ink");
    context.font = "11px system-ui, sans-serif";
    requests.forEach((request, row) => {
      context.fillStyle = ink;
      context.fillText(`request ${request}`, 0, row * ROW + 13);
    });
    shown.forEach((step, column) => this.column(context, { step, before: shown[column - 1], column, requests }));
    this.budget(context, shown, requests.length * ROW + 8, ink);
    this.words.textContent = describe(shown.at(-1));
  }

  private column(
    context: CanvasRenderingContext2D,
    { step, before, column, requests }: { step: StepRecord; before: StepRecord | undefined; column: number; requests: number[] },
  ): void {
    const x = LEFT + column * COLUMN;
    if (step.missed > 0) {
      context.setLineDash([1, 3]);
      context.strokeStyle = "gray";
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, requests.length * ROW);
      context.stroke();
      context.setLineDash([]);
    }
    for (const row of step.report.rows) {
      const y = requests.indexOf(row.sequence.request) * ROW;
      if (y < 0) continue;
      context.fillStyle = `hsl(${hue(row.sequence.request)} 65% 50%)`;
      if (row.tokens === 1) {
        context.beginPath();
        context.arc(x + COLUMN / 2, y + ROW / 2, 4, 0, 2 * Math.PI);
        context.fill();
      } else {
        // Dark enough for white numbers.
        context.fillStyle = `hsl(${hue(row.sequence.request)} 65% 33%)`;
        context.fillRect(x + 1, y + 1, COLUMN - 2, ROW - 2);
        context.fillStyle = "white";
        context.font = "bold 10px system-ui, sans-serif";
        context.textAlign = "center";
        context.fillText(String(row.tokens), x + COLUMN / 2, y + 14, COLUMN - 3);
        context.textAlign = "start";
      }
    }
    const lost = step.report.engine.sequences.filter((sequence) => sequence.state === "Preempted").map((sequence) => sequence.id.request);
    for (const request of lost) {
      const ran = before?.report.rows.some((row) => row.sequence.request === request);
      const y = requests.indexOf(request) * ROW;
      if (!ran || y < 0) continue;
      context.strokeStyle = "crimson";
      context.lineWidth = 2;
      context.beginPath();
      const [left, right, over, under] = [x + 3, x + COLUMN - 3, y + 5, y + ROW - 5];
      context.moveTo(left, over);
      context.lineTo(right, under);
      context.moveTo(right, over);
      context.lineTo(left, under);
      context.stroke();
    }
  }

  private budget(context: CanvasRenderingContext2D, shown: StepRecord[], top: number, ink: string): void {
    const budget = shown.at(-1)?.report.engine.max_num_batched_tokens ?? 1;
    context.fillStyle = ink;
    context.font = "11px system-ui, sans-serif";
    context.fillText(`budget ${budget}`, 0, top + 12);
    context.strokeStyle = ink;
    context.globalAlpha = 0.3;
    context.strokeRect(LEFT, top, Math.max(1, shown.length) * COLUMN, BUDGET_HEIGHT - 8);
    context.globalAlpha = 1;
    shown.forEach((step, column) => {
      const used = step.report.rows.reduce((sum, row) => sum + row.tokens, 0);
      const height = ((BUDGET_HEIGHT - 8) * used) / budget;
      context.fillRect(LEFT + column * COLUMN + 1, top + BUDGET_HEIGHT - 8 - height, COLUMN - 2, Math.max(1, height));
    });
  }
}

/** A server's step may take less than a millisecond. */
const formatted = (seconds: number) => `${(1000 * seconds).toFixed(seconds < 0.01 ? 2 : 0)} ms`;

/** The last step in words, for those who cannot see the drawing. */
function describe(step: StepRecord | undefined): string {
  if (!step) return "No step has run.";
  const parts = step.report.rows.map((row) =>
    row.tokens === 1 ? `request ${row.sequence.request} decodes a token` : `request ${row.sequence.request} prefills ${row.tokens} tokens from position ${row.position}`);
  const more = parts.length > 8 ? ` and ${parts.length - 8} more` : "";
  return `Last step (${formatted(step.seconds)}): ${parts.slice(0, 8).join("; ")}${more}.`;
}
