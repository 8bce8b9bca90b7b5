// The page with the model on the processor: everything that does not need a GPU.
//
//   node test/cpu.mjs REPOSITORY [FOLDER FOR SCREENSHOTS]

import { ask, claim, contradictions, failed, launch, open, ready, references, serve } from "./browser.mjs";

const [root, pictures] = process.argv.slice(2);
const { server, url } = await serve(`${root}/web-demo/page/dist`);
const browser = await launch({ webgpu: false });
try {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, "device=cpu");
  const loaded = await ready(page);
  console.log(`loaded in ${loaded.seconds.toFixed(1)} s`);
  await sameTokens(page);
  await fourChats(page);
  await viewsAreTheEngine(page);
  await preemption(page);
  await faults(page, context);
  await lesson(page);
  await phone(context);
} finally {
  await browser.close();
  server.close();
}
process.exitCode = failed() ? 1 : 0;

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: `${pictures}/${name}.png` });
}

async function sameTokens(page) {
  const cases = references(root).filter((one) => one.prompt.length <= 40).slice(0, 4);
  const started = performance.now();
  const requests = cases.map((one) => ({ text: one.text, ignore_eos: true, sampling: { temperature: 0, max_tokens: 12 } }));
  const answers = await ask(page, requests);
  const wrong = answers.filter((answer, index) => String(answer.tokens) !== String(cases[index].greedy.slice(0, 12)));
  claim("four requests at once give the greedy tokens of the reference", wrong.length === 0 && answers.length === 4, JSON.stringify(wrong));
  console.log(`     ${((performance.now() - started) / 1000).toFixed(1)} s`);
}

async function fourChats(page) {
  await page.evaluate(() => {
    const { engine } = globalThis.firebrick;
    globalThis.rowsMax = 0;
    engine.addEventListener("step", () => (globalThis.rowsMax = Math.max(globalThis.rowsMax, engine.latest.report.rows.length)));
  });
  await page.getByPlaceholder("Ask all chats at once").fill("Write a short story about a brick.");
  await page.getByRole("button", { name: "Ask all" }).click();
  await page.waitForFunction(() => [...document.querySelectorAll(".turn.assistant .text")].filter((text) => text.textContent.length > 60).length === 4);
  claim("four chats are in one batch", (await page.evaluate(() => globalThis.rowsMax)) === 4);
  await picture(page, "web-chats");
  await stopAll(page);
  await page.waitForFunction(() => globalThis.firebrick.engine.latest?.report.engine.stats.running === 0);
  claim("stop buttons end the answers and free their blocks", (await page.evaluate(() => globalThis.firebrick.engine.latest.report.engine.stats.blocks_used)) === 0);
  const first = page.locator(".chat").first();
  await first.getByRole("button", { name: "Clear chat 1" }).click();
  await first.locator("form textarea").fill("What is the capital of France?");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => /\d+ tokens in/.test(document.querySelector(".chat .note").textContent));
  const answer = (await first.locator(".turn.assistant .text").textContent()).trim();
  claim("the deterministic chat names Paris", answer === "The capital of France is Paris.", answer);
  const cached = await page.evaluate(() => globalThis.firebrick.engine.latest.report.engine.stats.prefix_cache_hits);
  claim("the chats' common beginning is found in the prefix cache", cached > 0);
}

/** Presses Stop in every chat until none answers. One that ends by itself meanwhile has no such button any more. */
async function stopAll(page) {
  const buttons = page.getByRole("button", { name: "Stop" }).filter({ visible: true });
  for (let tries = 0; tries < 150 && (await buttons.count()) > 0; tries += 1) await buttons.first().click({ timeout: 2000 }).catch(() => undefined);
}

async function viewsAreTheEngine(page) {
  await page.getByRole("button", { name: "Pause" }).click();
  await page.evaluate(() => {
    globalThis.firebrick.engine.send({ type: "audit" });
    globalThis.pending = ["The moon", "The moon is", "A brick"].map((text) => new Promise((resolve) =>
      globalThis.firebrick.engine.add({ text, ignore_eos: true, sampling: { temperature: 0, max_tokens: 20 } }, { finished: resolve })));
  });
  let wrong = [];
  let steps = 0;
  for (; steps < 12; steps += 1) {
    const before = await page.evaluate(() => globalThis.firebrick.engine.latest.report.engine.stats.steps);
    await page.getByRole("button", { name: "Step", exact: true }).click();
    await page.waitForFunction((before) => globalThis.firebrick.engine.latest?.report.engine.stats.steps > before, before);
    // Two frames: the views draw in the next one.
    const seen = await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve({
      engine: globalThis.firebrick.engine.latest.report.engine,
      audited: globalThis.firebrick.engine.latest.report.audited,
      cells: [...document.querySelectorAll(".pool .cell")].map((cell) => cell.getAttribute("aria-label")),
      tables: [...document.querySelectorAll(".table")].map((table) => [...table.querySelectorAll(".chip")].map((chip) => Number(chip.textContent))),
    })))));
    wrong = wrong.concat(contradictions(seen.engine), seen.audited ? [] : [`step ${steps}: no audit`]);
    seen.engine.blocks.forEach((block, index) => {
      const word = block.references > 1 ? "shared" : block.references === 1 ? "owned" : block.cached ? "cached" : "free";
      if (!seen.cells[index]?.startsWith(`Block ${index}: ${word}`)) wrong.push(`step ${steps}: block ${index} is ${word}, shown as ${seen.cells[index]}`);
    });
    if (JSON.stringify(seen.tables) !== JSON.stringify(seen.engine.sequences.map((sequence) => sequence.blocks))) wrong.push(`step ${steps}: the block tables are shown as ${JSON.stringify(seen.tables)}`);
  }
  claim(`the block views equal the engine's state, which its audit proves, at each of ${steps} single steps`, wrong.length === 0, wrong.slice(0, 3).join("; "));
  await page.locator(".chip").first().click();
  await page.waitForFunction(() => document.querySelector("#block-detail").textContent.includes("tokens:"));
  await picture(page, "web-blocks");
  await page.getByRole("button", { name: "Pause" }).click();
  await page.evaluate(() => Promise.all(globalThis.pending));
}

async function preemption(page) {
  await page.getByRole("tab", { name: "Sizes" }).click();
  await page.evaluate(() => {
    const { engine } = globalThis.firebrick;
    return engine.load(engine.source, { ...engine.settings, num_blocks: 8, block_size: 8 });
  });
  await page.getByRole("tab", { name: "Timeline" }).click();
  const requests = ["Once upon a time", "The moon", "Water", "A brick"].map((text) => ({ text, ignore_eos: true, sampling: { temperature: 0, max_tokens: 24 } }));
  const crowded = await ask(page, requests);
  const stats = await page.evaluate(() => globalThis.firebrick.engine.latest.report.engine.stats);
  claim("a pool too small for four answers preempts", stats.preemptions > 0);
  await picture(page, "web-timeline");
  await page.evaluate(() => {
    const { engine } = globalThis.firebrick;
    return engine.load(engine.source, { ...engine.settings, num_blocks: 64, block_size: 16 });
  });
  const roomy = await ask(page, requests);
  claim("preempted answers are the same", JSON.stringify(crowded.map((one) => one.tokens)) === JSON.stringify(roomy.map((one) => one.tokens)));
  const fromCache = await page.evaluate(() => globalThis.firebrick.engine.ready.fromCache);
  claim("the model was read from the browser's storage the second time", fromCache);
}

async function faults(page, context) {
  const message = await page.evaluate(async () => {
    const { engine } = globalThis.firebrick;
    const before = { source: engine.source, settings: engine.settings };
    await engine.load({ kind: "files", name: "broken.gguf", files: [new File([new Uint8Array(1000)], "broken.gguf")] }, engine.settings);
    const { message } = engine.status;
    await engine.load(before.source, before.settings);
    return message;
  });
  claim("a file that is no model is refused by name", message.includes("broken.gguf"), message);
  const crowded = await page.evaluate(async () => {
    const { engine } = globalThis.firebrick;
    const before = engine.settings;
    await engine.load(engine.source, { ...before, num_blocks: 20000 });
    const { message } = engine.status;
    await engine.load(engine.source, before);
    return message ?? "it was loaded";
  });
  claim("a cache that has no room is refused with the numbers", /need \d+ MB and 20000 blocks/.test(crowded), crowded);
  const refused = await ask(page, [{ text: "a ".repeat(3000), sampling: { max_tokens: 2 } }]);
  claim("a prompt that is too long is refused with the numbers", /prompt has \d+ tokens/.test(refused[0].reason), refused[0].reason);
  const second = await context.newPage();
  await second.goto(`${url}?device=cpu`);
  await second.waitForSelector("#other-tab");
  claim("a second tab is told of the first", true);
  await second.close();
  await page.locator(".chat").first().locator("form textarea").fill("Write a long story about a brick.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".chat").querySelectorAll(".turn.assistant .text").length >= 2 && [...document.querySelectorAll(".chat")][0].querySelector(".turn:last-child .text").textContent.length > 3);
  await page.reload();
  await ready(page);
  const chat = page.locator(".chat").first();
  const kept = (await chat.locator(".turn:last-child .text").textContent()).trim();
  await chat.getByRole("button", { name: "Continue" }).click();
  await page.waitForFunction((length) => document.querySelector(".chat .turn:last-child .text").textContent.trim().length > length, kept.length);
  const now = (await chat.locator(".turn:last-child .text").textContent()).trim();
  claim("an answer cut off by a reload goes on where it was", kept.length > 0 && now.startsWith(kept), `${kept} | ${now}`);
  await stopAll(page);
}

async function lesson(page) {
  await page.getByRole("tab", { name: "Lesson" }).click();
  for (const id of ["device", "memory", "paging", "contiguous", "sampling", "batch", "continuous", "analysis", "streaming", "benchmark", "summary"]) {
    let { state, text } = await runCard(page, id);
    // How fast things are depends on what else the machine does: a measured time that misses its claim is measured again.
    if (state === "fails" && /^(Measured gain|First token after)/m.test(text)) ({ state, text } = await runCard(page, id));
    console.log(text.replace(/^/gm, "     "));
    claim(`lesson: ${id}`, state === "holds", text);
  }
  await picture(page, "web-lesson");
}

/** Measures one step of the lesson; `text` is what its card says then. */
async function runCard(page, id) {
  const card = page.locator(`#lesson-${id}`);
  await card.getByRole("button", { name: "Run", exact: true }).click();
  await page.waitForFunction((id) => ["holds", "fails", "waits"].includes(document.querySelector(`#lesson-${id}`).dataset.state), id);
  return { state: await card.getAttribute("data-state"), text: await card.locator(".result").innerText() };
}

async function phone(context) {
  const page = await context.newPage();
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 390, height: 844 });
  await page.goto(`${url}?device=cpu`);
  await ready(page);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  claim("nothing is wider than a phone", overflow <= 0, `${overflow} pixels too wide`);
  const unnamed = await page.evaluate(() => [...document.querySelectorAll("button, input, select, textarea")].filter((field) => !(field.textContent.trim() || field.getAttribute("aria-label") || field.labels?.length)).map((field) => field.outerHTML));
  claim("every control has a name for a screen reader", unnamed.length === 0, unnamed.slice(0, 3).join(" "));
  await picture(page, "web-phone");
}
