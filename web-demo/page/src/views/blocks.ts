// The pool of KV blocks, one cell a block, and each sequence's block table. Both come from the engine's own snapshot.

import { el, hue } from "../dom";
import type { Watched } from "../engine_client";
import type { EngineSnapshot, SequenceSnapshot } from "../protocol";

type Owners = Map<number, number[]>;

/** Looks of a cell, what they mean, and what stands in it. */
const LEGEND: readonly [string, string, string][] = [
  ["free", "free", ""],
  ["cached", "kept by the prefix cache", ""],
  ["owned", "owned by one request", ""],
  ["owned is-cached", "owned, and in the prefix cache", ""],
  ["shared", "shared by so many", "2"],
];

/** Requests whose block tables name each block. */
export function owners(engine: EngineSnapshot): Owners {
  const found: Owners = new Map();
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

export class BlockViews {
  readonly element: HTMLElement;
  private readonly grid = el("div", { class: "pool", role: "group", "aria-label": "Blocks of the KV cache" });
  private readonly summary = el("p", { class: "summary" });
  private readonly tables = el("div", { class: "tables" });
  private readonly detail = el("p", { class: "detail", role: "status", id: "block-detail" }, "Choose a block to see its tokens.");
  private cells: HTMLButtonElement[] = [];
  private chosen: number | null = null;

  constructor(private readonly engine: Watched) {
    this.element = el("div", {},
      el("h3", {}, "Block pool"), this.summary, this.grid,
      el("ul", { class: "legend" },
        ...LEGEND.map(([look, text, mark]) => el("li", {}, el("i", { class: `cell ${look}` }, mark), text))),
      this.detail, el("h3", {}, "Block tables"), this.tables);
    this.grid.addEventListener("click", (event) => {
      const cell = (event.target as HTMLElement).closest("button");
      if (cell) void this.show(this.cells.indexOf(cell));
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
      cell.style.setProperty("--hue", String(hue(requests[0] ?? 0)));
      cell.textContent = block.references > 1 ? String(block.references) : "";
      const who = requests.length > 0 ? ` by request ${requests.join(", ")}` : "";
      cell.setAttribute("aria-label", `Block ${index}: ${what}${who}`);
      cell.title = cell.getAttribute("aria-label")!;
    });
    const { stats, block_size } = engine;
    this.summary.textContent =
      `${stats.blocks_used} of ${stats.blocks_total} blocks of ${block_size} tokens in use, ${stats.blocks_cached} kept for the prefix cache`
      + (engine.blocks.length < stats.blocks_total ? `; the first ${engine.blocks.length} are drawn` : "");
    this.tables.replaceChildren(...engine.sequences.map((sequence) => this.table(sequence, engine)));
    const hidden = stats.running + stats.waiting - engine.sequences.length;
    if (hidden > 0) this.tables.append(el("p", { class: "empty" }, `… and ${hidden} more.`));
    if (engine.sequences.length === 0) this.tables.append(el("p", { class: "empty" }, "No request is running."));
  }

  private resize(count: number): void {
    if (this.cells.length === count) return;
    this.cells = Array.from({ length: count }, (_, index) => el("button", { type: "button", class: "cell free", tabindex: index === 0 ? 0 : -1 }));
    this.grid.replaceChildren(...this.cells);
    this.chosen = null;
  }

  /** Arrow keys walk the grid, so that Tab passes it in one step. */
  private move(event: KeyboardEvent): void {
    const here = this.cells.indexOf(document.activeElement as HTMLButtonElement);
    const columns = Math.max(1, Math.floor(this.grid.clientWidth / (this.cells[0]?.offsetWidth || 1)));
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const next = step === undefined ? undefined : this.cells[here + step];
    if (here < 0 || !next) return;
    event.preventDefault();
    this.cells[here]!.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  private async show(block: number): Promise<void> {
    this.chosen = block;
    this.cells.forEach((cell, index) => cell.classList.toggle("chosen", index === block));
    const tokens = await this.engine.tokensInBlock(block).catch(() => []);
    const shown = tokens.flatMap(({ token, text }) => [el("code", { title: `token ${token}` }, text.replaceAll("\n", "↵").replaceAll(" ", "·") || "∅"), " "]);
    this.detail.replaceChildren(`Block ${block} holds ${tokens.length} tokens: `, ...shown);
  }

  private table(sequence: SequenceSnapshot, engine: EngineSnapshot): HTMLElement {
    const slots = (sequence.blocks.length + sequence.blocks_left_out) * engine.block_size;
    const waste = slots > 0 ? `, ${slots - sequence.computed_tokens} of ${slots} slots not used` : "";
    const chips = sequence.blocks.map((block, index) => {
      const shared = (engine.blocks[block]?.references ?? 0) > 1;
      const published = index < sequence.published_blocks;
      const filled = Math.max(0, Math.min(engine.block_size, sequence.computed_tokens - index * engine.block_size));
      const chip = el("button", {
        type: "button", class: `chip${shared ? " shared" : ""}${published ? " published" : ""}`, title: `block ${block}: ${filled} of ${engine.block_size} tokens`,
        onclick: () => void this.show(block),
      }, String(block));
      chip.style.setProperty("--fill", `${(100 * filled) / engine.block_size}%`);
      return chip;
    });
    const row = el("div", { class: `table ${sequence.state.toLowerCase()}` },
      el("div", { class: "owner" }, el("b", {}, `request ${sequence.id.request}`),
        ` ${sequence.state.toLowerCase()}, ${sequence.computed_tokens} of ${sequence.tokens} tokens computed${waste}`),
      el("div", { class: "chips" }, ...chips, sequence.blocks_left_out > 0 && `and ${sequence.blocks_left_out} more`));
    row.style.setProperty("--hue", String(hue(sequence.id.request)));
    return row;
  }
}
