// The page with a tiny random model of real files, fast enough for what must be done many times: models from the hub and
// from folders, a GPU that is lost again and again, and a page that watches a real server.
//
//   node test/tiny.mjs REPOSITORY FIREBRICK [FOLDER FOR SCREENSHOTS]
//
// LOSSES says how often the GPU is lost.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { ask, claim, contradictions, failed, launch, open, ready, runPython, serve, serveHub, startFirebrick } from "./browser.mjs";
import { chats } from "./chats.mjs";
import { deviceChoice } from "./device_choice.mjs";
import { lessonFaults } from "./lesson_faults.mjs";
import { looks } from "./looks.mjs";
import { sourceFaults } from "./source_faults.mjs";
import { storageFaults } from "./storage_faults.mjs";
import { tabFaults } from "./tab_faults.mjs";
import { views } from "./views.mjs";

const [root, binary, pictures] = process.argv.slice(2);
const losses = Number(process.env.LOSSES ?? 5);
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "firebrick-page-"));
const tiny = path.join(folder, "tiny");
runPython(`${root}/web-demo/page/test/tiny_half_model.py`, tiny);

const { server, url } = await serve(`${root}/web-demo/page/dist`);
const hub = await serveHub("org/tiny", tiny);
const flags = ["--served-model-name", "tiny", "--device", "cpu", "--num-gpu-blocks-override", "64", "--max-model-len", "512"];
const watched = [...flags, `--ui=${root}/web-demo/page/dist`, "--trace", "--admin-key", "root", "--allowed-origins", JSON.stringify([url.slice(0, -1)])];
let firebrick = await startFirebrick(binary, [tiny, ...watched]);
const browser = await launch({ webgpu: true });
const REQUEST = { text: "once upon a time", ignore_eos: true, sampling: { temperature: 0, max_tokens: 24 } };
try {
  const expected = await nativeTokens();
  await models(expected);
  const query = `model=org/tiny&hub=${hub.url}`;
  await views({ browser, url, query });
  await chats({ browser, url, query });
  await looks({ browser, url, query, picture });
  await sourceFaults({ browser, url, hub: hub.url, tiny, request: REQUEST, expected });
  await deviceChoice({ browser, root, url, tiny, query, request: REQUEST, expected });
  await storageFaults({ browser, root, url, hub, query, request: REQUEST, expected });
  await lessonFaults({ browser, url, query, request: REQUEST, expected });
  await lostDevice(expected);
  await tabFaults({ browser, root, url, query, request: REQUEST, expected });
  await watching();
} finally {
  await browser.close();
  server.close();
  hub.server.close();
  await firebrick.stop();
  fs.rmSync(folder, { recursive: true });
}
process.exitCode = failed() ? 1 : 0;

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
}

/** What the native binary answers, token by token. */
async function nativeTokens() {
  const body = { model: "tiny", prompt: REQUEST.text, temperature: 0, max_tokens: 24, ignore_eos: true, return_token_ids: true };
  const response = await fetch(`${firebrick.url}v1/completions`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok) throw new Error(JSON.stringify(answer));
  return answer.choices[0].token_ids;
}

async function models(expected) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const query = `model=org/tiny&hub=${hub.url}`;
  const page = await open(context, url, `device=cpu&${query}`);
  const same = async (what) => {
    const [answer] = await ask(page, [REQUEST]);
    claim(`${what} gives the tokens of the native binary`, String(answer.tokens) === String(expected), `${answer.tokens} | ${expected} | ${answer.reason}`);
  };
  await same("a model from the hub");
  claim("it was fetched", !(await ready(page)).fromCache && hub.fetched.includes("model.safetensors"));
  hub.fetched.length = 0;
  await page.reload();
  claim("and is read from the browser's storage the second time", (await ready(page)).fromCache && hub.fetched.length === 0, String(hub.fetched));
  await page.setInputFiles("#file", fs.readdirSync(tiny).map((name) => path.join(tiny, name)));
  await page.waitForFunction(() => globalThis.firebrick.engine.source.kind === "files");
  await ready(page);
  await same("a folder of files");

  const refusal = (source) => page.evaluate(async (source) => {
    const { engine } = globalThis.firebrick;
    const files = source.files?.map(({ name, bytes }) => new File([new Uint8Array(bytes)], name));
    await engine.load({ ...source, ...(files && { files }) }, engine.settings);
    return engine.status.state === "failed" ? engine.status.message : engine.status.state;
  }, source);
  const config = { name: "config.json", bytes: [...fs.readFileSync(path.join(tiny, "config.json"))] };
  const weights = [...fs.readFileSync(path.join(tiny, "model.safetensors"))];
  const cut = await refusal({ kind: "files", name: "cut", files: [config, { name: "model.safetensors", bytes: weights.slice(0, 9000) }] });
  claim("a truncated file is refused by name", cut.includes("model.safetensors"), cut);
  const bare = await refusal({ kind: "files", name: "bare", files: [config, { name: "model.safetensors", bytes: weights }] });
  claim("a model without a tokenizer is refused with what is missing", bare.includes("tokenizer.json"), bare);
  const none = await refusal({ kind: "files", name: "none", files: [{ name: "a.txt", bytes: [1] }, { name: "b.txt", bytes: [2] }] });
  claim("files that are no model are refused with what would be one", none.includes("config.json"), none);
  const missing = await refusal({ kind: "hub", id: "org/none", endpoint: hub.url });
  claim("a model that the hub does not have is refused by name", missing.includes("org/none"), missing);
  const away = await refusal({ kind: "hub", id: "org/tiny", endpoint: "http://127.0.0.1:9" });
  claim("a hub that does not answer is named", away.includes("127.0.0.1:9"), away);
  hub.damage("model.safetensors");
  const fresh = await browser.newContext();
  const damaged = await fresh.newPage();
  await damaged.goto(`${url}?device=cpu&${query}`);
  await damaged.waitForFunction(() => globalThis.firebrick?.engine.status.state === "failed");
  const message = await damaged.evaluate(() => globalThis.firebrick.engine.status.message);
  claim("a file with another hash than the hub's is refused", message.includes("model.safetensors") && message.includes("hash"), message);
  hub.damage(null);
  await fresh.close();
  await context.close();
}

async function lostDevice(expected) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, `device=webgpu&model=org/tiny&hub=${hub.url}`);
  claim("the tiny model is on a WebGPU adapter", (await ready(page)).facts.device === "webgpu");
  const [before] = await ask(page, [REQUEST]);
  claim("a WebGPU adapter gives the tokens of the native binary", String(before.tokens) === String(expected), `${before.tokens} | ${expected} | ${before.reason}`);
  const recorded = await page.evaluate(() => globalThis.firebrick.engine.steps.at(-1).report.num_graphs);
  claim("decode steps are replayed from a recording", recorded > 0, `${recorded}`);

  // An answer that is cut off goes on by itself.
  await page.locator("#chat-1-input").fill("tell me");
  await page.keyboard.press("Enter");
  const text = () => page.evaluate(() => globalThis.firebrick.chats[0].turns.at(-1)?.content ?? "");
  await page.waitForFunction(() => (globalThis.firebrick.chats[0].turns.at(-1)?.content ?? "").length > 5);
  await page.evaluate(() => globalThis.firebrick.engine.send({ type: "lose-device" }));
  await page.waitForFunction(() => !document.querySelector("#loss").hidden);
  const kept = await text();
  await ready(page);
  await page.waitForFunction((length) => (globalThis.firebrick.chats[0].turns.at(-1)?.content ?? "").length > length + 3, kept.length);
  claim("an answer that the loss cut off goes on by itself", (await text()).startsWith(kept), await text());
  claim("the page says what happened", /GPU/.test(await page.locator("#loss").textContent()));
  await picture(page, "web-loss");
  await page.evaluate(() => globalThis.firebrick.chats.forEach((chat) => chat.stop()));
  await page.waitForFunction(() => globalThis.firebrick.chats.every((chat) => !chat.isAnswering));

  let [good, clicks] = [0, 0];
  const started = performance.now();
  for (let loss = 0; loss < losses; loss += 1) {
    const [ended, resumed] = await page.evaluate(loseOnce);
    clicks += resumed;
    await ready(page);
    const [again] = await ask(page, [{ ...REQUEST, sampling: { temperature: 0, max_tokens: 4 } }]);
    if (ended && String(again.tokens) === String(before.tokens.slice(0, 4))) good += 1;
    else console.log(`     loss ${loss}: ${ended} ${again.tokens} ${again.reason}`);
  }
  claim(`the engine comes back with the same tokens after each of ${losses} losses`, good === losses, `${good}`);
  claim("after several losses in ten minutes the page asks before it goes on", losses <= 3 || clicks > 0);
  console.log(`     ${((performance.now() - started) / 1000).toFixed(1)} s, resumed by hand ${clicks} times`);
  await context.close();
}

/** Runs in the page: loses the device in the middle of an answer; whether that answer ended, and the click it took. */
async function loseOnce() {
  const { engine } = globalThis.firebrick;
  const ended = await new Promise((resolve) => {
    engine.add({ text: "again", ignore_eos: true, sampling: { temperature: 0, max_tokens: 400 } }, {
      token: () => engine.send({ type: "lose-device" }),
      finished: (_, reason) => resolve(reason),
    });
  });
  // The answer may end before the browser tells of the loss; then the page decides at once whether it goes on by itself.
  while (engine.status.state === "ready") await new Promise((resolve) => setTimeout(resolve, 5));
  const button = document.querySelector("#resume");
  button?.click();
  return [/GPU|device|lost/i.test(ended), button ? 1 : 0];
}

async function watching() {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await context.newPage();
  page.on("pageerror", (error) => claim("no error in the page", false, error.message));
  const connect = async (key) => {
    await page.locator("#key").fill(key);
    await page.getByRole("button", { name: "Watch" }).click();
  };
  const state = (wanted) => page.waitForFunction((wanted) => document.querySelector("#status").dataset.state === wanted, wanted);
  await page.goto(`${firebrick.url}ui/?attach`);
  claim("the server's own page is isolated", await page.evaluate(() => globalThis.crossOriginIsolated));
  await connect("wrong");
  await state("ended");
  claim("a wrong key is refused with what is right", (await page.locator("#status").textContent()).includes("--admin-key"));
  await connect("root");
  await state("watching");
  claim("the page that the server serves watches that server", (await page.locator("#status").textContent()).includes("tiny"));

  await page.goto(`${url}?attach=${encodeURIComponent(firebrick.url)}`);
  await connect("root");
  await state("watching");
  claim("a page from elsewhere watches it too, where its origin is allowed", true);
  await page.evaluate(() => {
    const { server } = globalThis.firebrick;
    globalThis.seen = [];
    server.addEventListener("step", () => globalThis.seen.push(server.latest));
  });
  const prompts = ["a tale of a long day", "a tale of a long night", "a tale of a short walk", "bricks"];
  const complete = (prompt) => fetch(`${firebrick.url}v1/completions`, {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tiny", prompt: `${prompt} `.repeat(3), max_tokens: 300, temperature: 1, seed: 3, ignore_eos: true }),
  }).then((response) => response.json());
  // The server is much faster than the page: it is kept at work for as long as the page is looked at.
  let looking = true;
  const answers = Promise.all(prompts.map(async (prompt) => {
    while (looking) await complete(prompt);
  }));
  await page.waitForFunction(() => document.querySelectorAll(".table .chip").length > 8 && (document.querySelector(".chip").click(), true));
  await picture(page, "web-attached");
  await page.waitForFunction(() => document.querySelector("#block-detail").textContent.includes("tokens:"));
  // A slow machine draws few steps a second.
  await page.waitForFunction(() => globalThis.seen.length > 20 && globalThis.seen.some((step) => step.report.rows.length === 4));
  looking = false;
  await answers;
  await page.waitForFunction(() => globalThis.firebrick.server.latest?.report.engine.stats.running === 0);
  const seen = await page.evaluate(() => globalThis.seen.map((step) => ({ engine: step.report.engine, rows: step.report.rows.length, missed: step.missed })));
  const wrong = seen.flatMap((step) => contradictions(step.engine));
  claim(`none of ${seen.length} steps of the server contradicts itself`, wrong.length === 0, wrong.slice(0, 3).join("; "));
  claim("four requests were in one batch", seen.some((step) => step.rows === 4));
  claim("all steps are counted, shown or not", seen.at(-1).engine.stats.steps - seen[0].engine.stats.steps <= seen.slice(1).reduce((sum, step) => sum + 1 + step.missed, 0));
  const cells = await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() =>
    resolve([...document.querySelectorAll(".pool .cell")].map((cell) => cell.getAttribute("aria-label")))))));
  const free = seen.at(-1).engine.blocks.every((block, index) => cells[index].startsWith(`Block ${index}: ${block.cached ? "cached" : "free"}`));
  claim("the pool is drawn as the server has it", cells.length === 64 && free);

  const { port } = new URL(firebrick.url);
  await firebrick.stop();
  await state("ended");
  claim("a server that ends is said to have ended", (await page.locator("#status").textContent()).includes("Trying again"));
  await page.locator(".pool .cell").nth(1).click();
  await page.waitForFunction(() => document.querySelector("#block-detail").textContent.includes("does not answer"));
  claim("and the tokens of its blocks are not called none", !(await page.locator("#block-detail").textContent()).includes("holds"));
  firebrick = await startFirebrick(binary, [tiny, ...watched, "--port", port]);
  await state("watching");
  claim("and is watched again when it is back", true);
  await page.setViewportSize({ width: 390, height: 844 });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  claim("nothing is wider than a phone", overflow <= 0, `${overflow} pixels too wide`);
  await context.close();
}
