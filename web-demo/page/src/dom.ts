// Elements in one expression.

type Child = Node | string | null | undefined | false;
type Attributes = Record<string, string | number | boolean | ((event: Event) => void) | undefined>;

/** Makes an element: attributes by name, listeners as `onclick`, then children. */
export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replaces what an element holds; absent children are left out, as in `el`. */
export function fill(element: HTMLElement, ...children: Child[]): void {
  element.replaceChildren(...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false));
}

/**
 * The children of an element, by key: those that stay keep their element, and with it the focus and a press that has begun.
 * Elements that are drawn while the engine runs would lose both if they were made anew.
 */
export class KeyedChildren<Key, Entry extends { element: HTMLElement }> {
  private readonly entries = new Map<Key, Entry>();

  constructor(private readonly parent: HTMLElement, private readonly make: (key: Key) => Entry) {}

  /** The entries of these keys, in their order; others go. */
  show(keys: readonly Key[]): Entry[] {
    const wanted = new Set(keys);
    for (const [key, entry] of this.entries) {
      if (wanted.has(key)) continue;
      entry.element.remove();
      this.entries.delete(key);
    }
    return keys.map((key, place) => {
      const entry = this.entries.get(key) ?? this.make(key);
      this.entries.set(key, entry);
      const there = this.parent.children[place] ?? null;
      if (there !== entry.element) this.parent.insertBefore(entry.element, there);
      return entry;
    });
  }
}

/** Writes a text only where it changes: a selection in it stays, and nothing is laid out again. */
export function setText(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * A colour of its own for each request, the same in every view. All are equally light, so that white text on them and they
 * themselves on a light or dark ground can be told apart.
 */
export function colour(request: number): string {
  return `oklch(0.535 0.11 ${(request * 137.5) % 360})`;
}

export function bytes(count: number): string {
  const units = ["B", "KB", "MB", "GB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count < 10 && unit > 0 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}
