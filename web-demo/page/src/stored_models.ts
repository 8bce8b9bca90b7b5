// The models in the browser's own storage: what they take, and a way to be rid of them.

import { bytes, el } from "./dom";
import { listStored, removeStored, type StoredModel } from "./stored_files";

export class StoredModels {
  readonly element = el("div", { id: "stored", hidden: true });

  /** Reads the list anew. */
  async refresh(): Promise<void> {
    const models = await listStored();
    this.element.hidden = models.length === 0;
    const total = models.reduce((sum, model) => sum + model.bytes, 0);
    const rows = models.map((model) => el("div", { class: "motion" },
      el("span", {}, `${model.title}, ${bytes(model.bytes)}`),
      el("button", { type: "button", "aria-label": `Remove ${model.title} from the storage`, onclick: () => void this.remove([model]) }, "Remove")));
    this.element.replaceChildren(
      el("p", { class: "hint" }, `In this browser’s storage: ${bytes(total)}. What is removed is fetched again when it is needed.`), ...rows);
    if (models.length > 1) this.element.append(el("button", { type: "button", onclick: () => void this.remove(models) }, "Remove all"));
  }

  private async remove(models: StoredModel[]): Promise<void> {
    for (const name of models.flatMap((model) => model.names)) await removeStored(name);
    await this.refresh();
  }
}
