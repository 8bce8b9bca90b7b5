// The block pool, each sequence's block table, and the tokens of a chosen block. All come from the engine's own snapshot.

import { el, setText } from "../dom";
import type { Watched } from "../engine_client";
import type { BlockToken, EngineSnapshot } from "../protocol";
import type { RequestNames } from "../request_names";
import { BlockTables } from "./block_tables";
import { Pool } from "./pool";

/** How long the tokens of the chosen block are shown before they are asked for again, while the engine runs. */
const REFRESH_MS = 500;

const visible = (text: string) => text.replaceAll("\n", "↵").replaceAll(" ", "·") || "∅";

export class BlockViews {
  readonly element: HTMLElement;
  private readonly pool = new Pool((block) => this.choose(block));
  private readonly tables: BlockTables;
  private readonly summary = el("p", { class: "summary" });
  private readonly detail = el("p", { class: "detail", id: "block-detail" }, "Choose a block to see its tokens.");
  /** Says what was chosen, once: the detail itself changes with the steps. */
  private readonly spoken = el("p", { class: "hidden", role: "status" });
  private chosen: number | null = null;
  private asked = false;
  private outdated = false;

  constructor(private readonly engine: Watched, names: RequestNames | null) {
    this.tables = new BlockTables(names, (block) => this.choose(block));
    this.element = el("div", {},
      el("h3", {}, "Block pool"), this.summary, this.pool.element,
      this.detail, this.spoken, el("h3", {}, "Block tables"), this.tables.element);
  }

  draw(engine: EngineSnapshot): void {
    if (this.chosen !== null && this.chosen >= engine.blocks.length) this.forget();
    this.pool.draw(engine);
    this.tables.draw(engine);
    const { stats, block_size } = engine;
    setText(this.summary,
      `${stats.blocks_used} of ${stats.blocks_total} blocks of ${block_size} tokens in use, ${stats.blocks_cached} kept for the prefix cache`
      + (engine.blocks.length < stats.blocks_total ? `; the first ${engine.blocks.length} are drawn` : ""));
    if (this.asked) this.outdated = true;
    else void this.refresh();
  }

  /** The block of an engine with a larger pool. */
  private forget(): void {
    this.chosen = null;
    this.pool.mark(null);
    this.detail.replaceChildren("Choose a block to see its tokens.");
  }

  private choose(block: number): void {
    this.chosen = block;
    this.pool.mark(block);
    void this.show(block).then(() => {
      if (this.chosen === block) this.spoken.textContent = this.detail.textContent;
    });
  }

  /** Shows the tokens that the chosen block has now, and later again if the engine went on meanwhile. */
  private async refresh(): Promise<void> {
    if (this.chosen === null) return;
    this.asked = true;
    this.outdated = false;
    await this.show(this.chosen);
    await new Promise((resolve) => setTimeout(resolve, REFRESH_MS));
    this.asked = false;
    if (this.outdated) await this.refresh();
  }

  private async show(block: number): Promise<void> {
    const answer = await this.engine.tokensInBlock(block).catch((error: Error) => error);
    if (block !== this.chosen) return;
    if (answer instanceof Error) {
      this.detail.replaceChildren(el("span", { class: "error" }, `The tokens of block ${block} cannot be shown: ${answer.message}.`));
      return;
    }
    const shown = el("p", {}, `Block ${block} holds ${answer.length} tokens: `, ...answer.flatMap((token) => [code(token), " "]));
    // Made anew only where it differs, so that a token's title can be read while the engine runs.
    if (shown.innerHTML !== this.detail.innerHTML) this.detail.replaceChildren(...shown.childNodes);
  }
}

function code({ token, text }: BlockToken): HTMLElement {
  return el("code", { title: `token ${token}` }, visible(text));
}
