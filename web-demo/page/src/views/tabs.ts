// Views as tabs, moved through with the arrow keys.

import { el } from "../dom";

/** `chosen` is called whenever another view comes to the front. */
export function tabs(label: string, views: [string, HTMLElement][], chosen: () => void): HTMLElement {
  const list = el("div", { role: "tablist", class: "tabs", "aria-label": label });
  const panels = views.map(([name, view]) => el("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: true, tabindex: 0 }, view));
  const buttons = views.map(([name], index) => el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => choose(index) }, name));
  const choose = (index: number) => {
    buttons.forEach((button, other) => {
      button.setAttribute("aria-selected", String(other === index));
      button.tabIndex = other === index ? 0 : -1;
      panels[other]!.hidden = other !== index;
    });
    chosen();
  };
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const here = buttons.findIndex((button) => button.getAttribute("aria-selected") === "true");
    const next = (here + step + buttons.length) % buttons.length;
    choose(next);
    buttons[next]!.focus();
  });
  list.append(...buttons);
  choose(0);
  return el("div", {}, list, ...panels);
}
