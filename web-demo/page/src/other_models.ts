// Where other models come from: the list beside the page, the hub, and files of this machine, chosen or dropped. What is
// chosen is checked before it is loaded.

import { bytes, el } from "./dom";
import { droppedFiles, type FileGroup, group } from "./dropped_files";
import { HUB } from "./hub";
import { check, titleOf } from "./model_check";
import type { ModelEntry, ModelSource } from "./protocol";
import { StoredModels } from "./stored_models";

export interface Choices {
  /** Models that lie beside the page. */
  models: ModelEntry[];
  /** The name of a model of the hub that the address asks for. */
  hubId: string | null;
  /** Called with a source that nothing speaks against. */
  load: (source: ModelSource) => void;
  /** Whether an engine runs or is being loaded, which a refusal leaves alone. */
  isRunning: () => boolean;
}

export class OtherModels {
  readonly element: HTMLDetailsElement;
  /** Says what is being checked, and why it was refused. */
  readonly notice = el("p", { class: "warning", id: "refusal", role: "status", hidden: true });
  private readonly stored = new StoredModels();
  private readonly id: HTMLInputElement;
  /** The newest choice; answers to earlier ones no longer matter. */
  private choice = 0;

  constructor(private readonly choices: Choices) {
    const { models, hubId } = choices;
    const file = el("input", { type: "file", id: "file", multiple: true, accept: ".gguf,.safetensors,.json,.jinja,.txt", onchange: () => {
      if (file.files?.length) this.chooseFiles(group([...file.files]));
      file.value = "";
    } });
    this.id = el("input", { type: "text", id: "hub-id", placeholder: "org/name", spellcheck: "false", autocomplete: "off", value: hubId ?? "" });
    const hub = el("form", { class: "hub", onsubmit: (event) => {
      event.preventDefault();
      if (this.id.value.trim()) this.chooseHub(this.id.value.trim());
    } }, el("label", { for: "hub-id" }, "From the hub"), this.id, el("button", { type: "submit" }, "Load"));
    const listed = models.map((entry) => el("button", { type: "button", onclick: () => void this.choose({ kind: "listed", entry }) }, `${entry.name} (${bytes(entry.bytes)})`));
    this.element = el("details", { class: "others", open: models.length === 0 && !hubId },
      el("summary", {}, "Other models"),
      listed.length > 0 && el("div", { class: "motion", id: "listed", role: "group", "aria-label": "Models beside this page" }, ...listed),
      el("div", { class: "motion" }, el("label", { class: "button", for: "file" }, "Open files"), file,
        el("span", { class: "hint" }, "a .gguf file, or config.json, tokenizer.json and .safetensors together; a folder can be dropped on the page")),
      hub, this.stored.element,
      el("p", { class: "hint" }, el("a", { href: "?attach" }, "Watch a server instead")));
    this.element.addEventListener("toggle", () => void this.stored.refresh());
    this.takeDrops();
  }

  /** A model was loaded, and may have been stored. */
  loaded(): void {
    void this.stored.refresh();
  }

  chooseHub(id: string): void {
    void this.choose({ kind: "hub", id, endpoint: new URLSearchParams(location.search).get("hub") ?? HUB });
  }

  private chooseFiles({ name, files }: FileGroup): void {
    void this.choose({ kind: "files", name, files });
  }

  private takeDrops(): void {
    const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    document.addEventListener("dragover", (event) => {
      if (hasFiles(event)) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      if (!event.dataTransfer || !hasFiles(event)) return;
      event.preventDefault();
      droppedFiles(event.dataTransfer).then((dropped) => this.chooseFiles(dropped), (error) => this.refuse("what was dropped", error));
    });
  }

  private async choose(source: ModelSource): Promise<void> {
    const mine = ++this.choice;
    this.say(`Checking ${titleOf(source)} …`);
    try {
      await check(source);
    } catch (error) {
      if (mine === this.choice) this.refuse(titleOf(source), error);
      return;
    }
    if (mine !== this.choice) return;
    this.notice.hidden = true;
    this.choices.load(source);
  }

  private refuse(title: string, error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    this.say(`${title} was not loaded: ${reason}.${this.choices.isRunning() ? " The engine goes on as it was." : ""}`);
    this.element.open ||= !this.choices.isRunning();
  }

  private say(text: string): void {
    this.notice.textContent = text;
    this.notice.hidden = false;
  }
}
