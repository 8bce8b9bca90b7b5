// The views of the engine under a hand: the mouse, the keyboard, scrolling. With the tiny model of `tiny.mjs`, which calls this.

import { ask, claim, open } from "./browser.mjs";

export async function views({ browser, url, query }) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, `device=cpu&max_model_len=512&${query}`);
  await pressWhileRunning(page);
  await blockThatCannotBeShown(page);
  await ownersThatAreNotShown(page);
  await arrowKeys(page);
  await oneName(page);
  await timeline(page);
  await lastChunk(page);
  await context.close();
}

/** Two frames: the views draw in the next one. */
const frames = (page) => page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
const numSteps = (page) => page.evaluate(() => globalThis.firebrick.engine.latest.report.engine.stats.steps);

async function stepsMore(page, more) {
  const before = await numSteps(page);
  await page.waitForFunction((wanted) => globalThis.firebrick.engine.latest?.report.engine.stats.steps >= wanted, before + more);
  await frames(page);
}

/** A request of many tokens, which `end` waits for. */
async function begin(page, tokens, text = "once upon a time in a land of bricks") {
  await page.evaluate(({ tokens, text }) => {
    globalThis.ended = new Promise((resolve) => globalThis.firebrick.engine.add(
      { text, ignore_eos: true, sampling: { temperature: 0, max_tokens: tokens } },
      { accepted: (request) => (globalThis.request = request), finished: resolve },
    ));
  }, { tokens, text });
}

async function end(page) {
  await page.evaluate(() => {
    globalThis.firebrick.engine.abort(globalThis.request);
    return globalThis.ended;
  });
}

async function pressWhileRunning(page) {
  await page.locator("#slow").selectOption("200");
  await begin(page, 300);
  await page.waitForFunction(() => document.querySelectorAll(".chip").length > 1);
  const chip = page.locator(".chip").nth(1);
  const block = await chip.textContent();
  const box = await chip.boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.down();
  await stepsMore(page, 3);
  await page.mouse.up();
  await page.waitForFunction(() => document.querySelector("#block-detail").textContent.includes("tokens:"));
  const detail = await page.locator("#block-detail").textContent();
  claim("a press on a block table counts though steps were drawn between down and up", detail.startsWith(`Block ${block} holds`), detail);
  await chip.focus();
  await stepsMore(page, 3);
  claim("the keyboard's place in a block table outlives a step", await chip.evaluate((chip) => document.activeElement === chip));
  await page.locator(".chip").last().click();
  await page.waitForFunction(() => /holds \d+ tokens/.test(document.querySelector("#block-detail").textContent));
  const held = () => page.evaluate(() => Number(/holds (\d+) tokens/.exec(document.querySelector("#block-detail").textContent)?.[1]));
  const first = await held();
  await page.waitForFunction((first) => Number(/holds (\d+) tokens/.exec(document.querySelector("#block-detail").textContent)?.[1]) !== first, first);
  claim("the tokens of a chosen block follow the engine", true);
  await page.locator("#slow").selectOption("0");
  await end(page);
  await page.waitForFunction(() => [...document.querySelectorAll(".gauges div")].some((gauge) => gauge.textContent === "Tokens per second–"));
  claim("there is no speed when nothing runs", true);
}

async function blockThatCannotBeShown(page) {
  await page.evaluate(() => (globalThis.firebrick.engine.tokensInBlock = () => Promise.reject(new Error("planted"))));
  await page.locator(".pool .cell").nth(3).click();
  await page.waitForFunction(() => document.querySelector("#block-detail").textContent.includes("planted"));
  const detail = await page.locator("#block-detail").textContent();
  claim("tokens that cannot be had are not called none", !detail.includes("holds"), detail);
  await page.evaluate(() => delete globalThis.firebrick.engine.tokensInBlock);
}

/** A large server has more requests than a snapshot shows: their blocks are taken all the same. */
async function ownersThatAreNotShown(page) {
  const looks = await page.evaluate(() => {
    const { engine } = globalThis.firebrick;
    const { report, ...step } = engine.latest;
    const blocks = report.engine.blocks.map(() => ({ references: 1, cached: false }));
    engine.steps.push({ ...step, report: { ...report, engine: { ...report.engine, blocks, sequences: [] } } });
    engine.dispatchEvent(new Event("step"));
    return new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => {
      engine.steps.pop();
      resolve([...new Set([...document.querySelectorAll(".pool .cell")].map((cell) => getComputedStyle(cell).backgroundColor))]);
    })));
  });
  claim("blocks of requests that are not shown are seen at once, all in one colour", looks.length === 1 && looks[0] !== "rgba(0, 0, 0, 0)", String(looks));
}

async function arrowKeys(page) {
  const place = () => page.evaluate(() => [document.activeElement.offsetLeft, document.activeElement.offsetTop]);
  await page.locator(".pool .cell").nth(2).focus();
  const before = await place();
  await page.keyboard.press("ArrowDown");
  const below = await place();
  await page.keyboard.press("ArrowUp");
  claim("arrow keys go straight down and up in the pool", below[0] === before[0] && below[1] > before[1] && String(await place()) === String(before), `${before} | ${below}`);
  const pause = page.getByRole("button", { name: "Pause" });
  await pause.click();
  claim("the pause button keeps its name when it is pressed", (await pause.getAttribute("aria-pressed")) === "true");
  await pause.click();
}

async function oneName(page) {
  await page.locator("#slow").selectOption("200");
  await page.locator("#chat-1-input").fill("tell me");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".table .owner b")?.textContent.includes("Chat 1"));
  const seen = await page.evaluate(() => {
    const edge = (selector) => getComputedStyle(document.querySelector(selector)).borderLeftColor;
    return { badge: document.querySelector(".badge").textContent, owner: document.querySelector(".owner b").textContent, same: edge(".chat .badge") === edge(".table") };
  });
  claim("a chat and its block table have one name and one colour", seen.same && seen.owner === `${seen.badge}, Chat 1`, JSON.stringify(seen));
  await page.locator("#slow").selectOption("0");
  await page.locator(".chat").first().getByRole("button", { name: "Stop" }).click();
  await page.waitForFunction(() => !globalThis.firebrick.chats[0].isAnswering && document.querySelectorAll(".table").length === 0);
  claim("both go with the request", (await page.locator(".badge").first().textContent()) === "");
}

async function timeline(page) {
  await page.getByRole("tab", { name: "Timeline" }).click();
  const scroller = page.locator(".timeline");
  const place = () => scroller.evaluate(({ scrollLeft, scrollWidth, clientWidth }) => ({ left: scrollLeft, rest: scrollWidth - clientWidth - scrollLeft }));
  await begin(page, 200);
  await page.evaluate(() => globalThis.ended);
  await frames(page);
  const atEnd = await place();
  claim("the timeline follows the newest step", atEnd.left > 500 && atEnd.rest < 14, JSON.stringify(atEnd));
  const bar = await page.locator(".timeline canvas").evaluate((canvas) => Math.max(...canvas.getContext("2d").getImageData(canvas.width - 40, 5, 14, 1).data.filter((_, index) => index % 4 === 3)));
  claim("steps of one token are drawn against the largest in sight, not against the budget", bar > 200, String(bar));
  const back = await scroller.evaluate((element) => {
    element.scrollLeft = 280;
    return element.scrollWidth;
  });
  await frames(page);
  await begin(page, 40);
  await page.evaluate(() => globalThis.ended);
  await frames(page);
  const kept = await place();
  claim("and stays where it was scrolled back to", kept.left === 280 && (await scroller.evaluate((element) => element.scrollWidth)) > back, JSON.stringify(kept));
  await scroller.evaluate((element) => (element.scrollLeft = element.scrollWidth));
  await frames(page);
  await begin(page, 20);
  await page.evaluate(() => globalThis.ended);
  await frames(page);
  claim("until it is scrolled to the end again", (await place()).rest < 14);
}

/** A prompt of a token more than the budget of a step. */
async function lastChunk(page) {
  const budget = await page.evaluate(() => globalThis.firebrick.engine.settings.max_num_batched_tokens);
  const [probe] = await ask(page, [{ text: "b".repeat(budget), sampling: { temperature: 0, max_tokens: 1 } }]);
  const text = "c".repeat(2 * budget + 1 - probe.promptTokens);
  await page.getByRole("button", { name: "Pause" }).click();
  await begin(page, 2, text);
  const words = [];
  for (let count = 0; count < 2; count += 1) {
    const before = await numSteps(page);
    await page.getByRole("button", { name: "Step", exact: true }).click();
    await page.waitForFunction((before) => globalThis.firebrick.engine.latest?.report.engine.stats.steps > before, before);
    await frames(page);
    words.push(await page.locator("#timeline-words").textContent());
  }
  claim("the last token of a prompt is called prefill", words[1].includes(`prefills a token from position ${budget}`), words.join(" | "));
  await page.getByRole("button", { name: "Pause" }).click();
  await page.evaluate(() => globalThis.ended);
}
