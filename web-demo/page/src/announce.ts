// The loading of a model, said to screen readers. The bar itself changes many times a second, far too often to be read out.

import { el } from "./dom";
import type { EngineClient, Status } from "./engine_client";

/** Between two sentences about a loading that goes on. */
const PAUSE_MS = 5000;

function sentence(status: Status): string {
  switch (status.state) {
    case "loading": {
      const part = status.total > 0 && status.done > 0 ? `, ${Math.round((100 * status.done) / status.total)} %` : "";
      return `The model is loading${part}.`;
    }
    case "ready":
      return `${status.ready.facts.name} is loaded.`;
    case "failed":
      return `The engine has stopped: ${status.message}.`;
    case "empty":
      return "";
  }
}

/** An element that only screen readers see. */
export function announceStatus(engine: EngineClient): HTMLElement {
  const spoken = el("p", { class: "hidden", role: "status", id: "spoken-status" });
  let state: Status["state"] = "empty";
  let at = 0;
  engine.addEventListener("status", () => {
    const { status } = engine;
    const now = performance.now();
    if (status.state === state && now < at + PAUSE_MS) return;
    state = status.state;
    at = now;
    spoken.textContent = sentence(status);
  });
  return spoken;
}
