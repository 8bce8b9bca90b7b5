// What can be measured of the page's looks: contrast in light and dark, and its width on a phone. With the tiny model of
// `tiny.mjs`, which calls this.

import { claim, open } from "./browser.mjs";

export async function looks({ browser, url, query, picture }) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, `device=cpu&max_model_len=512&${query}`);
  await fill(page);
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    const weak = await page.evaluate(weakContrasts);
    claim(`texts have a contrast of 4.5 and edges of controls one of 3 in ${colorScheme}`, weak.length === 0, weak.join("; "));
    await picture?.(page, `web-looks-${colorScheme}`);
  }
  await phone(page, picture);
  await context.close();
}

/** Four chats with the same long beginning at work, some shared blocks and some cached ones, all paused. */
async function fill(page) {
  await page.locator("#slow").selectOption("200");
  await page.getByPlaceholder("Ask all chats at once").fill("Tell me a very long story about bricks and kilns and the people who lay them, day after day.");
  await page.getByRole("button", { name: "Ask all" }).click();
  await page.waitForFunction(() => globalThis.firebrick.engine.steps.filter((step) => step.report.rows.length === 4).length > 8 && document.querySelector(".pool .shared"));
  await page.getByRole("button", { name: "Pause" }).click();
  await page.locator(".chip").first().click();
  await page.waitForFunction(() => document.querySelector("#block-detail").textContent.includes("tokens:"));
}

/** Runs in the page: what is too faint against what lies behind it. */
function weakContrasts() {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  /** Colours painted over each other, as the screen shows them. */
  const painted = (...colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
    }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
  };
  const luminance = (colours) => {
    const [red, green, blue] = painted(...colours).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].toSorted((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const behind = (element) => (element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : []);
  const weak = [];
  const check = (what, least, front, ground) => {
    const found = contrast([...ground, front], ground);
    if (found < least) weak.push(`${what}: ${found.toFixed(2)}`);
  };
  const text = (selector) => document.querySelectorAll(selector).forEach((element) => check(`text of ${selector}`, 4.5, getComputedStyle(element).color, behind(element)));
  const edge = (selector) => document.querySelectorAll(selector).forEach((element) => {
    check(`edge of ${selector}`, 3, getComputedStyle(element).borderTopColor, behind(element.parentElement));
  });
  [".pool .free", ".pool .owned", ".pool .shared", ".chip", ".owner", ".owner b", ".summary", ".detail", ".note", ".badge", ".legend", ".turn .text", ".tabs button", "summary", ".gauges dt",
    "button:not(:disabled)", "select", "h1", "h2", "h3", "a"].forEach(text);
  [".pool .free", "input:not([type=file])", "textarea", "select", ".motion button:not(:disabled, [aria-pressed=true])", ".chip"].forEach(edge);
  document.querySelectorAll(".pool .owned, .pool .shared").forEach((cell) => check("fill of a taken block", 3, getComputedStyle(cell).backgroundColor, behind(cell.parentElement)));
  document.querySelectorAll("[placeholder]").forEach((field) => check("placeholder", 4.5, getComputedStyle(field, "::placeholder").color, behind(field)));
  // Requests that have not come yet have colours too: turned to every hue, with white numbers, on both grounds.
  const sample = document.querySelector(".table");
  const [, lightness, chroma] = /oklch\(([\d.]+) ([\d.]+)/.exec(sample.style.getPropertyValue("--colour"));
  for (let hue = 0; hue < 360; hue += 1) {
    const fill = `oklch(${lightness} ${chroma} ${hue})`;
    check(`white on hue ${hue}`, 4.5, "white", [fill]);
    check(`hue ${hue}`, 3, fill, behind(sample));
  }
  return [...new Set(weak)].slice(0, 12);
}

/** A step of the lesson with what it measured, on an idle engine at full speed. */
async function measureOnce(page) {
  await page.getByRole("button", { name: "Pause" }).click();
  await page.locator("#slow").selectOption("0");
  await page.evaluate(() => globalThis.firebrick.chats.forEach((chat) => chat.stop()));
  await page.waitForFunction(() => globalThis.firebrick.engine.numOpen === 0);
  await page.locator(".step button").first().click();
  await page.waitForFunction(() => ["holds", "fails"].includes(document.querySelector(".step").dataset.state));
}

async function phone(page, picture) {
  await page.setViewportSize({ width: 380, height: 800 });
  await page.getByRole("link", { name: "The engine" }).click();
  const top = await page.evaluate(() => document.querySelector("#engine").getBoundingClientRect().top);
  claim("a link leads from the top of a phone to the engine", top >= 0 && top < 400, `${top}`);
  for (const name of ["Blocks", "Timeline", "Lesson", "Sizes"]) {
    await page.getByRole("tab", { name }).click();
    if (name === "Lesson") await measureOnce(page);
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
    const wide = await page.evaluate(() => {
      const width = document.documentElement.clientWidth;
      const scrolls = (element) => element.closest(".scroll, .log, pre") !== null;
      return document.documentElement.scrollWidth > width
        ? ["the page"]
        : [...document.querySelectorAll("#engine *")].filter((element) => !scrolls(element) && element.getBoundingClientRect().right > width).map((element) => element.outerHTML.slice(0, 80));
    });
    claim(`nothing under ${name} is wider than a phone`, wide.length === 0, wide.slice(0, 3).join(" "));
    await picture?.(page, `web-phone-${name.toLowerCase()}`);
  }
}
