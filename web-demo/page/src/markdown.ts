// Answers as HTML: a model may write anything, so that what `marked` makes is cleaned before it is shown.

import DOMPurify from "dompurify";
import { marked } from "marked";

export function render(markdown: string): string {
  const html = marked.parse(markdown, { async: false, gfm: true, breaks: true });
  // No images, forms or links that leave the page by themselves: answers are text.
  return DOMPurify.sanitize(html, { FORBID_TAGS: ["img", "form", "input", "button", "style", "iframe", "svg"], FORBID_ATTR: ["style"] });
}
