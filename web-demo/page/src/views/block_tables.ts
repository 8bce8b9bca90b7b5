// Each sequence's block table, one chip a block, filled as far as its keys and values are computed.

import { colour, el, KeyedChildren, setText } from "../dom";
import type { EngineSnapshot, SequenceSnapshot } from "../protocol";
import type { RequestNames } from "../request_names";

class Chip {
  readonly element: HTMLButtonElement;

  constructor(private readonly block: number, choose: (block: number) => void) {
    this.element = el("button", { type: "button", onclick: () => choose(block) }, String(block));
  }

  draw(sequence: SequenceSnapshot, index: number, engine: EngineSnapshot): void {
    const shared = (engine.blocks[this.block]?.references ?? 0) > 1;
    const published = index < sequence.published_blocks;
    const filled = Math.max(0, Math.min(engine.block_size, sequence.computed_tokens - index * engine.block_size));
    this.element.className = `chip${shared ? " shared" : ""}${published ? " published" : ""}`;
    this.element.title = `block ${this.block}: ${filled} of ${engine.block_size} tokens`;
    this.element.style.setProperty("--fill", `${(100 * filled) / engine.block_size}%`);
  }
}

class Table {
  readonly element: HTMLElement;
  private readonly owner = el("b");
  private readonly words = el("span");
  private readonly rest = el("div", { class: "empty", hidden: true });
  private readonly chips: KeyedChildren<number, Chip>;

  constructor(request: number, choose: (block: number) => void) {
    const chips = el("div", { class: "chips" });
    this.chips = new KeyedChildren(chips, (block) => new Chip(block, choose));
    this.element = el("div", {}, el("div", { class: "owner" }, this.owner, this.words), chips, this.rest);
    this.element.style.setProperty("--colour", colour(request));
  }

  draw(sequence: SequenceSnapshot, engine: EngineSnapshot, name: string | undefined): void {
    const slots = (sequence.blocks.length + sequence.blocks_left_out) * engine.block_size;
    const waste = slots > 0 ? `, ${slots - sequence.computed_tokens} of ${slots} slots not used` : "";
    const state = sequence.state.toLowerCase();
    this.element.className = `table ${state}`;
    setText(this.owner, `request ${sequence.id.request}${name ? `, ${name}` : ""}`);
    setText(this.words, ` ${state}, ${sequence.computed_tokens} of ${sequence.tokens} tokens computed${waste}`);
    this.chips.show(sequence.blocks).forEach((chip, index) => chip.draw(sequence, index, engine));
    this.rest.hidden = sequence.blocks_left_out === 0;
    setText(this.rest, `and ${sequence.blocks_left_out} more`);
  }
}

const keyOf = ({ id }: SequenceSnapshot) => `${id.request} ${id.index}`;

export class BlockTables {
  readonly element: HTMLElement;
  private readonly note = el("p", { class: "empty" });
  private readonly tables: KeyedChildren<string, Table>;

  constructor(private readonly names: RequestNames | null, choose: (block: number) => void) {
    const list = el("div", { class: "tables" });
    this.tables = new KeyedChildren(list, (key) => new Table(parseInt(key, 10), choose));
    this.element = el("div", {}, list, this.note);
  }

  draw(engine: EngineSnapshot): void {
    // By request, not in the scheduler's order: a table stays in its place while others are preempted.
    const sequences = engine.sequences.toSorted((a, b) => a.id.request - b.id.request || a.id.index - b.id.index);
    this.tables.show(sequences.map(keyOf)).forEach((table, place) => {
      const sequence = sequences[place]!;
      table.draw(sequence, engine, this.names?.of(sequence.id.request));
    });
    const hidden = engine.stats.running + engine.stats.waiting - sequences.length;
    this.note.hidden = sequences.length > 0 && hidden <= 0;
    setText(this.note, sequences.length === 0 ? "No request is running." : `… and ${hidden} more.`);
  }
}
