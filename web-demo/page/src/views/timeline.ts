// The batches of the last steps, one column a step: its tokens and its number, and under them one row a request with long
// prefill chunks, single decoded tokens and preemptions. It scrolls back over all steps that are kept.

import { colour, el, setText } from "../dom";
import type { StepRecord } from "../engine_client";
import type { RowSnapshot } from "../protocol";
import type { RequestNames } from "../request_names";

const COLUMN = 14;
const ROW = 20;
const BARS = 40;
const AXIS = 18;
/** Where the rows begin: under bars and axis, which stay in place while requests come and go. */
const TOP = BARS + AXIS + 4;
const LEFT = 84;
/** Space between two numbers on the axis. */
const NUMBER = 44;
/** Requests drawn, the newest ones: a large server runs hundreds at once. */
const REQUESTS_MAX = 40;
const FONT = "11px system-ui, sans-serif";

/** What is seen of the steps, and where. */
interface View {
  context: CanvasRenderingContext2D;
  steps: StepRecord[];
  first: number;
  last: number;
  /** Of the column of step 0, in pixels of the canvas. */
  origin: number;
  width: number;
  requests: number[];
  ink: string;
}

const numberOf = (step: StepRecord) => step.report.engine.stats.steps;
const tokensOf = (step: StepRecord) => step.report.rows.reduce((sum, row) => sum + row.tokens, 0);

/** Whether a row computes the prompt. Its last chunk may be one token long; a request that ended in this step is known from the step before. */
function isPrefill(row: RowSnapshot, step: StepRecord, before: StepRecord | undefined): boolean {
  if (row.tokens > 1) return true;
  const { request, index } = row.sequence;
  const sequence = [step, before].flatMap((one) => one?.report.engine.sequences ?? []).find(({ id }) => id.request === request && id.index === index);
  return sequence !== undefined && row.position < sequence.prompt_tokens;
}

export class Timeline {
  readonly element: HTMLElement;
  private readonly canvas = el("canvas", { role: "img", "aria-label": "Batch timeline" });
  private readonly track = el("div", {}, this.canvas);
  private readonly scroller = el("div", { class: "scroll timeline", tabindex: 0, role: "group", "aria-label": "Steps, which scroll to the side" }, this.track);
  private readonly words = el("p", { class: "detail", id: "timeline-words" });
  private steps: StepRecord[] = [];
  /** The number of the step at the left edge, once the user has scrolled back from the end. */
  private anchor: number | null = null;
  private frame = 0;

  constructor(private readonly names: RequestNames | null) {
    this.element = el("div", {}, el("h3", {}, "Batch timeline"),
      el("p", { class: "summary" }, "One column a step, with its tokens as a bar. Tall marks are prefill chunks with their number of tokens, dots are single decoded tokens, crosses are preemptions. A dotted line stands for steps that were not shown."),
      this.scroller, this.words);
    this.scroller.addEventListener("scroll", () => {
      const { scrollLeft, scrollWidth, clientWidth } = this.scroller;
      const isAtEnd = scrollWidth - clientWidth - scrollLeft < COLUMN;
      const left = this.steps[Math.floor(scrollLeft / COLUMN)];
      this.anchor = isAtEnd || !left ? null : numberOf(left);
      this.frame ||= requestAnimationFrame(() => {
        this.frame = 0;
        this.paint();
      });
    });
  }

  draw(steps: StepRecord[]): void {
    this.steps = steps.filter((step) => step.report.rows.length > 0);
    this.track.style.width = `${LEFT + this.steps.length * COLUMN}px`;
    const place = this.anchor === null ? -1 : this.steps.findIndex((step) => numberOf(step) >= this.anchor!);
    if (place < 0) {
      this.anchor = null;
      this.scroller.scrollLeft = this.scroller.scrollWidth;
    } else if (Math.floor(this.scroller.scrollLeft / COLUMN) !== place) {
      this.scroller.scrollLeft = place * COLUMN;
    }
    this.paint();
    setText(this.words, describe(this.steps.at(-1), this.steps.at(-2)));
  }

  /** Draws the steps that are in sight on a canvas that is as wide as the view. */
  private paint(): void {
    const { steps } = this;
    const width = this.scroller.clientWidth || 600;
    const scrolled = this.scroller.scrollLeft;
    const first = Math.floor(scrolled / COLUMN);
    const last = Math.min(steps.length, Math.ceil((scrolled + width - LEFT) / COLUMN));
    const seen = steps.slice(first, last);
    const requests = [...new Set(seen.flatMap((step) => step.report.rows.map((row) => row.sequence.request)))].sort((a, b) => a - b).slice(-REQUESTS_MAX);
    const height = TOP + requests.length * ROW;
    const scale = globalThis.devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.scale(scale, scale);
    context.font = FONT;
    const ink = getComputedStyle(this.element).getPropertyValue("--ink");
    const view: View = { context, steps, first, last, origin: LEFT - scrolled, width, requests, ink };
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT, height);
    context.clip();
    for (let index = first; index < last; index += 1) column(view, index);
    const largest = Math.max(1, ...seen.map(tokensOf));
    bars(view, largest);
    context.restore();
    this.labels(view, largest);
  }

  private labels({ context, steps, requests, ink }: View, largest: number): void {
    requests.forEach((request, row) => {
      context.fillStyle = colour(request);
      context.fillRect(0, TOP + row * ROW + 3, 4, ROW - 6);
      context.fillStyle = ink;
      context.fillText(this.names?.of(request) ?? `request ${request}`, 8, TOP + row * ROW + 14, LEFT - 12);
    });
    const budget = steps.at(-1)?.report.engine.max_num_batched_tokens ?? 0;
    context.fillStyle = ink;
    context.fillText(`${largest} tokens`, 0, 10, LEFT - 4);
    context.fillText(`budget ${budget}`, 0, 26, LEFT - 4);
    context.fillText("step", 0, BARS + 14);
  }
}

/** One step: a mark for each request in its batch. */
function column({ context, steps, origin, requests }: View, index: number): void {
  const step = steps[index]!;
  const before = steps[index - 1];
  const x = origin + index * COLUMN;
  if (step.missed > 0) gap(context, x, TOP + requests.length * ROW);
  for (const row of step.report.rows) {
    const place = requests.indexOf(row.sequence.request);
    if (place < 0) continue;
    const y = TOP + place * ROW;
    context.fillStyle = colour(row.sequence.request);
    if (isPrefill(row, step, before)) {
      context.fillRect(x + 1, y + 1, COLUMN - 2, ROW - 2);
      context.fillStyle = "white";
      context.font = "bold 10px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillText(String(row.tokens), x + COLUMN / 2, y + 14, COLUMN - 3);
      context.textAlign = "start";
      context.font = FONT;
    } else {
      context.beginPath();
      context.arc(x + COLUMN / 2, y + ROW / 2, 4, 0, 2 * Math.PI);
      context.fill();
    }
  }
  for (const { id, state } of step.report.engine.sequences) {
    const ran = before?.report.rows.some((row) => row.sequence.request === id.request);
    const place = requests.indexOf(id.request);
    if (state === "Preempted" && ran && place >= 0) cross(context, x, TOP + place * ROW);
  }
}

/** Steps that were not shown. */
function gap(context: CanvasRenderingContext2D, x: number, bottom: number): void {
  context.setLineDash([1, 3]);
  context.strokeStyle = "gray";
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x, TOP);
  context.lineTo(x, bottom);
  context.stroke();
  context.setLineDash([]);
}

/** A preemption. */
function cross(context: CanvasRenderingContext2D, x: number, y: number): void {
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

/** The tokens of each step against the largest step in sight, and under them the steps' numbers. */
function bars({ context, steps, first, last, origin, ink }: View, largest: number): void {
  context.fillStyle = ink;
  context.strokeStyle = ink;
  context.globalAlpha = 0.3;
  context.strokeRect(origin, 0, Math.max(1, steps.length) * COLUMN, BARS);
  context.globalAlpha = 1;
  let free = -Infinity;
  for (let index = first; index < last; index += 1) {
    const x = origin + index * COLUMN;
    const height = Math.max(1, (BARS * tokensOf(steps[index]!)) / largest);
    context.fillRect(x + 1, BARS - height, COLUMN - 2, height);
    const [number, before] = [numberOf(steps[index]!), index > 0 ? numberOf(steps[index - 1]!) : 0];
    // Every fifth step, or the first shown after it where steps were missed.
    if (Math.floor(number / 5) === Math.floor(before / 5) || x < free) continue;
    context.fillText(String(number), x + 1, BARS + 14);
    context.fillRect(x + 1, BARS, 1, 4);
    free = x + NUMBER;
  }
}

/** A server's step may take less than a millisecond. */
const formatted = (seconds: number) => `${(1000 * seconds).toFixed(seconds < 0.01 ? 2 : 0)} ms`;

/** The last step in words, for those who cannot see the drawing. */
function describe(step: StepRecord | undefined, before: StepRecord | undefined): string {
  if (!step) return "No step has run.";
  const parts = step.report.rows.map((row) => {
    const request = `request ${row.sequence.request}`;
    const tokens = row.tokens === 1 ? "a token" : `${row.tokens} tokens`;
    return isPrefill(row, step, before) ? `${request} prefills ${tokens} from position ${row.position}` : `${request} decodes a token`;
  });
  const more = parts.length > 8 ? ` and ${parts.length - 8} more` : "";
  return `Step ${numberOf(step)} (${formatted(step.seconds)}): ${parts.slice(0, 8).join("; ")}${more}.`;
}
