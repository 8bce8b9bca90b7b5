// Answers as HTML: a model may write anything, so that what `marked` makes is cleaned before it is shown.

import DOMPurify from "dompurify";
import { marked } from "marked";

/** What Markdown needs: text. Nothing that fetches, nothing that takes input, no looks of its own. */
const ALLOWED = {
  ALLOWED_TAGS: [
    "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "em", "strong", "del", "code", "pre", "blockquote",
    "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "a",
  ],
  ALLOWED_ATTR: ["href", "title", "align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(https?|mailto):/i,
  // Not addresses, so that the rule for addresses does not apply to them.
  ADD_URI_SAFE_ATTR: ["align", "start"],
};

const purifier = DOMPurify(window);
// A link leaves the conversation where it is, and the other page gets no hold on this one.
purifier.addHook("afterSanitizeAttributes", (node) => {
  if (!node.hasAttribute("href")) return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

export function render(markdown: string): string {
  const html = marked.parse(markdown, { async: false, gfm: true, breaks: true });
  return purifier.sanitize(html, ALLOWED);
}
