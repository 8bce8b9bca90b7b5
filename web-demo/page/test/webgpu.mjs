// The page with the model on a WebGPU adapter; in software, so that answers are short.
//
//   node test/webgpu.mjs REPOSITORY [FOLDER FOR SCREENSHOTS]

import { ask, claim, contradictions, failed, launch, open, ready, references, serve } from "./browser.mjs";

const [root, pictures] = process.argv.slice(2);
const { server, url } = await serve(`${root}/web-demo/page/dist`);
const browser = await launch({ webgpu: true });
try {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, "device=webgpu");
  const loaded = await ready(page);
  claim("the model is on a WebGPU adapter", loaded.facts.device === "webgpu" && loaded.adapter !== "", JSON.stringify(loaded.facts));
  console.log(`     ${loaded.adapter}, loaded in ${loaded.seconds.toFixed(1)} s`);
  await sameTokens(page);
  await lostDevice(page);
} finally {
  await browser.close();
  server.close();
}
process.exitCode = failed() ? 1 : 0;

async function sameTokens(page) {
  // The shortest text of the references, twice at once: every token costs seconds here.
  const [shortest] = references(root).sort((one, other) => one.prompt.length - other.prompt.length);
  const length = 3;
  const started = performance.now();
  const request = { text: shortest.text, ignore_eos: true, sampling: { temperature: 0, max_tokens: length } };
  const answers = await ask(page, [request, request]);
  const expected = String(shortest.greedy.slice(0, length));
  const wrong = answers.filter((answer) => String(answer.tokens) !== expected);
  claim("two requests at once give the greedy tokens of the reference", wrong.length === 0, JSON.stringify(wrong));
  console.log(`     ${((performance.now() - started) / 1000).toFixed(1)} s`);
  const steps = await page.evaluate(() => globalThis.firebrick.engine.steps.map((step) => ({ seconds: step.seconds, rows: step.report.rows.map((row) => row.tokens), engine: step.report.engine })));
  steps.forEach((step) => console.log(`     step of ${step.rows.join(" + ") || 0} tokens: ${step.seconds.toFixed(2)} s`));
  claim("both were in one batch", steps.some((step) => step.rows.length === 2));
  claim("no snapshot contradicts itself", steps.every((step) => contradictions(step.engine).length === 0));
  if (pictures) await page.screenshot({ path: `${pictures}/web-webgpu.png` });
}

async function lostDevice(page) {
  // An answer that stands in the page half done, as after a reload: what is asked again is short.
  const answer = page.evaluate(() => new Promise((resolve) => globalThis.firebrick.engine.add({ text: "Hi", ignore_eos: true, sampling: { temperature: 0, max_tokens: 64 } }, { finished: (_, reason) => resolve(reason) })));
  await page.evaluate(() => globalThis.firebrick.engine.send({ type: "lose-device" }));
  claim("a request that was running ends with the reason", /GPU|device/.test(await answer), await answer);
  await page.waitForFunction(() => !document.querySelector("#loss").hidden);
  claim("a lost device is said", (await page.locator("#loss").textContent()).includes("GPU"));
  const again = await ready(page);
  claim("the engine comes back on the adapter, with the model from the browser's storage", again.facts.device === "webgpu" && again.fromCache);
  const [one] = await ask(page, [{ text: "Hi", ignore_eos: true, sampling: { temperature: 0, max_tokens: 1 } }]);
  claim("and computes again", one.tokens.length === 1, one.reason);
}
