// Pause, single steps and slow motion; and the sizes of the engine, which is made anew when they change.

import { el } from "../dom";
import type { EngineClient } from "../engine_client";
import type { DeviceName, EngineSettings } from "../protocol";

export function motion(engine: EngineClient): HTMLElement {
  const step = el("button", { type: "button", disabled: true, onclick: () => engine.send({ type: "single-step" }) }, "Step");
  const pause = el("button", { type: "button", "aria-pressed": "false" }, "Pause");
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    step.disabled = !paused;
    engine.send({ type: "pause", paused });
  });
  const slow = el("select", { id: "slow", onchange: () => engine.send({ type: "delay", milliseconds: Number(slow.value) }) },
    el("option", { value: 0 }, "full speed"), el("option", { value: 200 }, "slow: 0.2 s a step"), el("option", { value: 1000 }, "very slow: 1 s a step"));
  // A new engine runs at full speed.
  engine.addEventListener("status", () => {
    if (engine.status.state !== "ready") return;
    engine.send({ type: "pause", paused: pause.getAttribute("aria-pressed") === "true" });
    engine.send({ type: "delay", milliseconds: Number(slow.value) });
  });
  return el("div", { class: "motion", role: "group", "aria-label": "Speed" }, pause, step, el("label", { for: "slow", class: "hidden" }, "Speed"), slow);
}

interface Slider {
  name: keyof EngineSettings & ("block_size" | "num_blocks" | "max_num_batched_tokens" | "max_num_seqs");
  label: string;
  values: number[];
}

const SLIDERS: readonly Slider[] = [
  { name: "block_size", label: "Tokens in a block", values: [4, 8, 16, 32, 64] },
  { name: "num_blocks", label: "Blocks in the pool", values: [8, 16, 24, 32, 48, 64, 96, 128, 192, 256] },
  { name: "max_num_batched_tokens", label: "Token budget of a step", values: [8, 16, 32, 64, 128, 256, 512] },
  { name: "max_num_seqs", label: "Sequences in a step", values: [1, 2, 4, 6, 8] },
];

/** The form calls `apply` with new settings. */
export function sizes(settings: EngineSettings, devices: DeviceName[], apply: (settings: EngineSettings) => void): HTMLElement {
  const chosen = { ...settings };
  const device = el("select", { id: "device" });
  devices.forEach((name) => device.append(el("option", { value: name }, name === "webgpu" ? "WebGPU" : "CPU (WebAssembly, slow)")));
  device.value = settings.device;
  const prefix = el("input", { type: "checkbox", id: "prefix", checked: settings.enable_prefix_caching });
  const rows = SLIDERS.map(({ name, label, values }) => {
    const shown = el("output", { for: name }, String(chosen[name]));
    const place = Math.max(0, values.findIndex((value) => value >= chosen[name]));
    const slider = el("input", { type: "range", id: name, min: 0, max: values.length - 1, value: place, "aria-valuetext": String(chosen[name]) });
    slider.addEventListener("input", () => {
      chosen[name] = values[Number(slider.value)] ?? chosen[name];
      shown.textContent = String(chosen[name]);
      slider.setAttribute("aria-valuetext", String(chosen[name]));
    });
    return el("div", { class: "field" }, el("label", { for: name }, label), slider, shown);
  });
  return el("form", {
    class: "sizes",
    onsubmit: (event) => {
      event.preventDefault();
      // Every running sequence must get a token in every step.
      const budget = Math.max(chosen.max_num_batched_tokens, chosen.max_num_seqs);
      apply({ ...chosen, max_num_batched_tokens: budget, device: device.value as DeviceName, enable_prefix_caching: prefix.checked });
    },
  },
    el("h3", {}, "Engine"),
    el("div", { class: "field" }, el("label", { for: "device" }, "Device"), device),
    ...rows,
    el("div", { class: "field" }, el("label", { for: "prefix" }, "Prefix cache"), prefix),
    el("button", { type: "submit", class: "primary" }, "Make the engine anew"),
    el("p", { class: "hint" }, "A small pool with several long chats provokes preemption; large blocks waste slots; a small budget cuts prompts into chunks."));
}
