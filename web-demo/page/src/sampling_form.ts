// How one conversation samples: a preset, and the numbers that the user has changed in it.

import { el } from "./dom";
import { PRESETS, type Preset } from "./presets";
import type { Sampling } from "./protocol";

type Name = "temperature" | "top_p" | "max_tokens" | "seed";

const FIELDS: readonly { name: Name; label: string; min: number; max: number; step: number | "any" }[] = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: "any" },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: "any" },
  { name: "max_tokens", label: "Max tokens", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

export interface StoredSampling {
  preset: string;
  /** What stood in the fields. */
  values: Partial<Record<Name, string>>;
}

export class SamplingForm {
  readonly presets: HTMLSelectElement;
  readonly details: HTMLDetailsElement;
  private readonly inputs = new Map<Name, HTMLInputElement>();

  /** `changed` is called after every change by the user. */
  constructor(chat: number, preset: string, changed: () => void) {
    this.presets = el("select", { id: `chat-${chat}-preset`, "aria-label": `Sampling of chat ${chat}` });
    PRESETS.forEach(({ name, hint }) => this.presets.append(el("option", { value: name, title: hint }, name)));
    const fields = FIELDS.map(({ name, label, min, max, step }) => {
      const id = `chat-${chat}-${name}`;
      const input = el("input", { type: "number", id, min, max, step, placeholder: name === "seed" ? "none" : "" });
      input.addEventListener("change", changed);
      this.inputs.set(name, input);
      return el("div", {}, el("label", { for: id }, label), input);
    });
    this.details = el("details", {}, el("summary", {}, "Sampling"), el("div", { class: "sampling" }, ...fields));
    this.presets.addEventListener("change", () => {
      this.fill();
      changed();
    });
    this.presets.value = preset;
    this.fill();
  }

  /** Whether every number is one that can be asked for; otherwise the first that is not is shown. */
  check(): boolean {
    const wrong = [...this.inputs.values()].find((input) => !input.checkValidity());
    if (!wrong) return true;
    this.details.open = true;
    wrong.reportValidity();
    return false;
  }

  /** The preset with the user's numbers. An empty field leaves the number to the engine. */
  get sampling(): Sampling {
    const sampling: Sampling = { ...this.preset.sampling };
    for (const [name, input] of this.inputs) {
      if (input.value === "") delete sampling[name];
      else sampling[name] = input.valueAsNumber;
    }
    return sampling;
  }

  get stop(): string[] {
    return this.preset.stop;
  }

  get stored(): StoredSampling {
    return { preset: this.presets.value, values: Object.fromEntries([...this.inputs].map(([name, input]) => [name, input.value])) };
  }

  restore({ preset, values }: StoredSampling): void {
    this.presets.value = preset;
    this.fill();
    for (const [name, input] of this.inputs) input.value = values[name] ?? input.value;
  }

  private get preset(): Preset {
    return PRESETS.find(({ name }) => name === this.presets.value) ?? PRESETS[0]!;
  }

  private fill(): void {
    for (const [name, input] of this.inputs) input.value = String(this.preset.sampling[name] ?? "");
  }
}
