// The pool of KV blocks, one cell a block.

import { colour, el } from "../dom";
import type { EngineSnapshot } from "../protocol";

/** Looks of a cell, what they mean, and how many share it. */
const LEGEND: readonly [string, string, string?][] = [
  ["free", "free"],
  ["cached", "kept by the prefix cache"],
  ["owned", "owned by one request"],
  ["owned is-cached", "owned, and in the prefix cache"],
  ["shared", "shared by so many", "×2"],
];

/** Requests whose block tables name each block. */
function owners(engine: EngineSnapshot): Map<number, number[]> {
  const found = new Map<number, number[]>();
  for (const sequence of engine.sequences) {
    for (const block of sequence.blocks) {
      const requests = found.get(block) ?? [];
      requests.push(sequence.id.request);
      found.set(block, requests);
    }
  }
  return found;
}

function kind(references: number, cached: boolean): "free" | "cached" | "owned" | "shared" {
  if (references > 1) return "shared";
  if (references === 1) return "owned";
  return cached ? "cached" : "free";
}

export class Pool {
  readonly element: HTMLElement;
  private readonly grid = el("div", { class: "pool", role: "group", "aria-label": "Blocks of the KV cache" });
  private cells: HTMLButtonElement[] = [];
  private chosen: number | null = null;

  constructor(choose: (block: number) => void) {
    this.element = el("div", {}, this.grid,
      el("ul", { class: "legend" },
        ...LEGEND.map(([look, text, sharers]) => el("li", {}, el("i", { class: `cell ${look}`, "data-sharers": sharers }), text))));
    this.grid.addEventListener("click", (event) => {
      const cell = (event.target as HTMLElement).closest("button");
      if (cell) choose(this.cells.indexOf(cell));
    });
    this.grid.addEventListener("keydown", (event) => this.move(event));
  }

  draw(engine: EngineSnapshot): void {
    this.resize(engine.blocks.length);
    const owned = owners(engine);
    engine.blocks.forEach((block, index) => {
      const cell = this.cells[index]!;
      const requests = owned.get(index) ?? [];
      const what = kind(block.references, block.cached);
      cell.className = `cell ${what}${block.cached ? " is-cached" : ""}${index === this.chosen ? " chosen" : ""}`;
      // Owners beyond the sequences that a snapshot shows have no colour here: the style sheet has one for all of them.
      if (requests[0] === undefined) cell.style.removeProperty("--colour");
      else cell.style.setProperty("--colour", colour(requests[0]));
      cell.dataset["sharers"] = block.references > 1 ? `×${block.references}` : "";
      const who = requests.length > 0 ? ` by request ${requests.join(", ")}` : "";
      cell.setAttribute("aria-label", `Block ${index}: ${what}${who}`);
      cell.title = cell.getAttribute("aria-label")!;
    });
  }

  mark(block: number | null): void {
    this.chosen = block;
    this.cells.forEach((cell, index) => cell.classList.toggle("chosen", index === block));
  }

  private resize(count: number): void {
    if (this.cells.length === count) return;
    this.cells = Array.from({ length: count }, (_, index) => el("button", { type: "button", class: "cell free", tabindex: index === 0 ? 0 : -1 }, String(index)));
    this.grid.replaceChildren(...this.cells);
  }

  /** Arrow keys walk the grid, so that Tab passes it in one step. */
  private move(event: KeyboardEvent): void {
    const here = this.cells.indexOf(document.activeElement as HTMLButtonElement);
    const columns = this.cells.findIndex((cell) => cell.offsetTop > this.cells[0]!.offsetTop);
    const row = columns < 0 ? this.cells.length : columns;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row }[event.key];
    const next = step === undefined ? undefined : this.cells[here + step];
    if (here < 0 || !next) return;
    event.preventDefault();
    this.cells.forEach((cell) => (cell.tabIndex = -1));
    next.tabIndex = 0;
    next.focus();
  }
}
