// What disturbs the lesson: a paused engine, slow motion, running chats; and what Stop and Step do while the engine is
// paused or idle. With the tiny model of `tiny.mjs`, which calls this.

import { ask, claim, open } from "./browser.mjs";

export async function lessonFaults({ browser, url, query, request, expected }) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, `device=cpu&${query}`);
  await stopWhilePaused(page);
  await idleSteps(page, request, expected);
  await page.getByRole("tab", { name: "Lesson" }).click();
  await pausedLesson(page);
  await slowLesson(page);
  await runningChats(page);
  await disturbed(page);
  await cutOff(page);
  await context.close();
}

/** Presses Pause, which begins a pause or ends it. */
const pause = (page) => page.getByRole("button", { name: "Pause" }).click();
const stats = (page) => page.evaluate(() => globalThis.firebrick.engine.latest.report.engine.stats);

/** Begins an answer without an end. `globalThis.answer` tells how it ended. */
function begin(page) {
  return page.evaluate(() => {
    globalThis.answer = new Promise((resolve) => globalThis.firebrick.engine.add(
      { text: "a", ignore_eos: true, sampling: { temperature: 0, max_tokens: 400 } },
      { accepted: (request) => (globalThis.request = request), finished: (_, reason) => resolve(reason) }));
  });
}

async function stopWhilePaused(page) {
  await pause(page);
  await page.locator("#chat-1-input").fill("tell me");
  await page.keyboard.press("Enter");
  await begin(page);
  const before = (await stats(page)).steps;
  await page.getByRole("button", { name: "Step", exact: true }).click();
  await page.waitForFunction((before) => globalThis.firebrick.engine.latest?.report.engine.stats.steps > before, before);
  await page.locator(".chat").first().getByRole("button", { name: "Stop" }).click();
  await page.waitForFunction(() => !globalThis.firebrick.chats[0].isAnswering);
  const note = await page.locator(".chat .note").first().textContent();
  const left = await stats(page);
  claim("Stop works while the engine is paused, and leaves the others alone", left.running === 1 && left.steps === before + 1, `${note}, ${left.running} run after ${left.steps - before} steps`);
  await page.evaluate(() => globalThis.firebrick.engine.abort(globalThis.request));
  const reason = await page.evaluate(() => globalThis.answer);
  claim("and the last one's blocks are given back", reason === "abort" && (await stats(page)).blocks_used === 0, reason);
}

async function idleSteps(page, request, expected) {
  for (let click = 0; click < 5; click += 1) await page.getByRole("button", { name: "Step", exact: true }).click();
  const before = (await stats(page)).steps;
  const answer = ask(page, [request]);
  await new Promise((resolve) => setTimeout(resolve, 300));
  const after = (await stats(page)).steps;
  claim("steps that are asked of an idle engine do not pile up", after === before, `${after - before} steps ran`);
  await pause(page);
  const [{ tokens }] = await answer;
  claim("and the engine goes on with the right tokens", String(tokens) === String(expected), String(tokens));
}

const card = (page, id) => page.locator(`#lesson-${id}`);
const run = (page, id) => card(page, id).getByRole("button", { name: "Run", exact: true }).click();

/** Presses what a card offers, and waits for the measurement. */
async function help(page, id, label) {
  await card(page, id).getByRole("button", { name: label }).click();
  await page.waitForFunction((id) => ["holds", "fails"].includes(document.querySelector(`#lesson-${id}`).dataset.state), id);
  return card(page, id).getAttribute("data-state");
}

async function pausedLesson(page) {
  await pause(page);
  await run(page, "paging");
  const text = await card(page, "paging").locator(".result").innerText();
  claim("a paused engine is not measured, and the lesson says so", text.includes("paused"), text);
  claim("at full speed it is", (await help(page, "paging", "Run at full speed")) === "holds", await card(page, "paging").innerText());
}

async function slowLesson(page) {
  await page.locator("#slow").selectOption("200");
  await run(page, "continuous");
  const text = await card(page, "continuous").locator(".result").innerText();
  claim("slow motion is not measured", text.includes("slow motion"), text);
  claim("its control is set to full speed too", (await help(page, "continuous", "Run at full speed")) === "holds" && (await page.locator("#slow").inputValue()) === "0");
}

async function runningChats(page) {
  await page.locator("#slow").selectOption("1000");
  await begin(page);
  await page.waitForFunction(() => globalThis.firebrick.engine.latest?.report.engine.stats.running === 1);
  await run(page, "contiguous");
  const text = await card(page, "contiguous").locator(".result").innerText();
  const running = await page.evaluate(() => globalThis.firebrick.engine.numOpen);
  claim("the lesson leaves running chats alone", running === 1 && text.includes("answer is running"), `${running} run: ${text}`);
  await card(page, "contiguous").getByRole("button", { name: "Stop them" }).click();
  await page.waitForFunction(() => /slow motion/.test(document.querySelector("#lesson-contiguous .result").innerText));
  const state = await help(page, "contiguous", "Run at full speed");
  const measured = await card(page, "contiguous").innerText();
  claim("contiguous memory runs exactly as many requests as it has room for", state === "holds" && /: 3 ran at once[^]*: 6 ran at once/.test(measured), measured);
}

async function disturbed(page) {
  await page.evaluate(() => globalThis.firebrick.engine.addEventListener("step", () =>
    globalThis.firebrick.engine.add({ text: "a", sampling: { max_tokens: 2 } }, { finished: () => undefined }), { once: true }));
  await run(page, "benchmark");
  await page.waitForFunction(() => ["holds", "fails"].includes(document.querySelector("#lesson-benchmark").dataset.state));
  const text = await card(page, "benchmark").innerText();
  claim("a chat in the middle of a measurement spoils it, and the lesson says so", text.includes("a chat was asked meanwhile"), text);
}

async function cutOff(page) {
  await page.evaluate(() => {
    const { engine, chats } = globalThis.firebrick;
    engine.addEventListener("step", function ask() {
      if (engine.latest.report.engine.stats.running < 3) return;
      engine.removeEventListener("step", ask);
      globalThis.before = chats[1].turns.length;
      chats[1].send("tell me");
    });
  });
  await run(page, "contiguous");
  await page.waitForFunction(() => document.querySelector("#lesson-contiguous").dataset.state === "fails");
  await page.waitForFunction(() => globalThis.firebrick.engine.latest?.report.engine.stats.running === 1);
  const [asked, answering] = await page.evaluate(() => [globalThis.firebrick.chats[1].turns.length - globalThis.before, globalThis.firebrick.chats[1].isAnswering]);
  claim("an answer that the lesson cut off goes on after it", asked === 2 && answering, `${asked} ${answering}`);
  await page.evaluate(() => globalThis.firebrick.chats[1].stop());
}
