// What browsers do to a tab with a GPU: memory that is not there, the background, a freeze, a second tab, a reload. With the
// tiny model of `tiny.mjs`, which calls this.

import { ask, claim, open, ready, serve } from "./browser.mjs";

/** Put before the worker's program: every buffer of a megabyte and more finds no memory, as a browser would say it. */
const NO_MEMORY = `
  const { createBuffer, popErrorScope } = GPUDevice.prototype;
  let asked = false;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    asked = descriptor.size >= 2 ** 20;
    return createBuffer.call(this, descriptor);
  };
  GPUDevice.prototype.popErrorScope = function () {
    const planted = asked ? new GPUOutOfMemoryError("planted") : null;
    asked = false;
    return popErrorScope.call(this).then((error) => error ?? planted);
  };
`;

export async function tabFaults({ browser, root, url, query, request, expected }) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  await noMemory(browser, root, query);
  const page = await open(context, url, `device=webgpu&${query}`);
  await tooManyBlocks(page);
  await background(page, request, expected);
  await frozen(context, page, request, expected);
  await secondTab(context, page, url, { query, request, expected });
  await reload(page);
  await context.close();
}

const isRight = (answer, expected) => String(answer.tokens) === String(expected);

async function noMemory(browser, root, query) {
  const { server, url } = await serve(`${root}/web-demo/page/dist`, NO_MEMORY);
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${url}?device=webgpu&num_blocks=20000&${query}`);
  await page.waitForFunction(() => ["ready", "failed"].includes(globalThis.firebrick?.engine.status.state));
  const message = await page.evaluate(() => globalThis.firebrick.engine.status.message ?? "it was loaded");
  claim("a GPU without memory is told with the numbers and what helps", /no room for a buffer of \d+ MB/.test(message) && message.includes("fewer"), message);
  await page.getByRole("button", { name: "Try again" }).waitFor();
  await context.close();
  server.close();
}

async function tooManyBlocks(page) {
  const message = await page.evaluate(async () => {
    const { engine } = globalThis.firebrick;
    const before = engine.settings;
    await engine.load(engine.source, { ...before, num_blocks: 4_000_000_000 });
    const { message } = engine.status;
    await engine.load(engine.source, before);
    return message ?? "it was loaded";
  });
  claim("a cache beyond the adapter's buffers is refused with what fits", /at most \d+ fit/.test(message), message);
}

/**
 * Makes the page one that nobody looks at: it hears so and gets no frames. Headless Chromium shows every page, so this is
 * what a browser does to a hidden page, not the browser itself; the freeze below is.
 */
function hide() {
  const held = [];
  const frame = globalThis.requestAnimationFrame;
  const say = (hidden) => {
    if (hidden) for (const [name, value] of [["hidden", true], ["visibilityState", "hidden"]]) Object.defineProperty(document, name, { configurable: true, value });
    else ["hidden", "visibilityState"].forEach((name) => delete document[name]);
    document.dispatchEvent(new Event("visibilitychange"));
  };
  globalThis.requestAnimationFrame = (callback) => held.push(callback);
  say(true);
  globalThis.unhide = () => {
    globalThis.requestAnimationFrame = frame;
    say(false);
    held.forEach((callback) => frame(callback));
  };
}

async function background(page, request, expected) {
  await page.evaluate(hide);
  const [answer] = await ask(page, [request]);
  claim("a tab in the background goes on", isRight(answer, expected), `${answer.tokens} | ${answer.reason}`);
  const [shown, state] = await page.evaluate(() => new Promise((resolve) => {
    globalThis.unhide();
    const { stats } = globalThis.firebrick.engine.latest.report.engine;
    requestAnimationFrame(() => requestAnimationFrame(() => resolve([document.querySelector(".summary").textContent, stats])));
  }));
  const expectedText = `${state.blocks_used} of ${state.blocks_total} blocks`;
  claim("and shows where it is when it comes back", shown.startsWith(expectedText), `${shown} | ${expectedText}`);
}

async function frozen(context, page, request, expected) {
  const session = await context.newCDPSession(page);
  // Waits in the page, so that nothing asks the frozen page for anything.
  await page.evaluate((request) => {
    const { engine } = globalThis.firebrick;
    const answer = { tokens: [] };
    globalThis.thawed = new Promise((resolve) => engine.add(request, {
      token: (_, token) => answer.tokens.push(token),
      finished: (_, reason) => resolve({ ...answer, reason }),
    }));
  }, request);
  await session.send("Page.setWebLifecycleState", { state: "frozen" });
  await new Promise((resolve) => setTimeout(resolve, 500));
  await session.send("Page.setWebLifecycleState", { state: "active" });
  const answer = await page.evaluate(() => globalThis.thawed);
  claim("a tab that the browser froze goes on when it is thawed", isRight(answer, expected), `${answer.tokens} | ${answer.reason}`);
}

async function secondTab(context, first, url, { query, request, expected }) {
  const second = await open(context, url, `device=webgpu&${query}`);
  await second.waitForSelector("#other-tab");
  claim("a second tab on the GPU is told of the first", (await first.locator("#other-tab").count()) === 0);
  const answers = (await Promise.all([ask(first, [request]), ask(second, [request])])).flat();
  claim("two tabs answer at the same time", answers.every((answer) => isRight(answer, expected)), JSON.stringify(answers));
  const third = await open(context, url, `device=webgpu&${query}`);
  await third.waitForSelector("#other-tab");
  await second.close();
  claim("closing one leaves the others at work", isRight((await ask(first, [request]))[0], expected) && (await third.locator("#other-tab").count()) === 1);
  await third.close();
}

async function reload(page) {
  const text = () => page.evaluate(() => globalThis.firebrick.chats[0].turns.at(-1)?.content ?? "");
  await page.locator("#chat-1-input").fill("tell me");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => (globalThis.firebrick.chats[0].turns.at(-1)?.content ?? "").length > 5);
  await page.reload();
  await ready(page);
  const kept = await text();
  await page.locator(".chat").first().getByRole("button", { name: "Continue" }).click();
  await page.waitForFunction((length) => (globalThis.firebrick.chats[0].turns.at(-1)?.content ?? "").length > length, kept.length);
  claim("an answer cut off by a reload goes on on the GPU", kept.length > 5 && (await text()).startsWith(kept), `${kept} | ${await text()}`);
  await page.evaluate(() => globalThis.firebrick.chats.forEach((chat) => chat.stop()));
}
