// A button that copies a text and says whether it did: browsers give the clipboard only to secure pages, and may ask the user.

import { el } from "./dom";

const SHOWN_MS = 2000;

/** `refused` hears why nothing was copied. */
export function copyButton(text: string, refused: (reason: string) => void): HTMLButtonElement {
  const button = el("button", { type: "button", class: "quiet", "aria-live": "polite" }, "Copy");
  let timer = 0;
  const copy = async () => {
    try {
      if (!navigator.clipboard) throw new Error("only pages of https:// or of this machine may copy");
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      clearTimeout(timer);
      timer = window.setTimeout(() => (button.textContent = "Copy"), SHOWN_MS);
    } catch (error) {
      refused(`The browser did not copy: ${(error as Error).message}`);
    }
  };
  button.addEventListener("click", () => void copy());
  return button;
}
