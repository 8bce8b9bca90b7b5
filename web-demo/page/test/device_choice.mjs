// Which device the page takes by itself, and what it says of that: without an adapter, without WebGPU, with a software
// adapter, and where it came over plain http from another machine. With the tiny model of `tiny.mjs`, which calls this.

import os from "node:os";
import { ask, claim, launch, open, ready, serve, serveHub } from "./browser.mjs";

export async function deviceChoice({ browser, root, url, tiny, query, request, expected }) {
  // This browser has a software adapter.
  await choice(browser, { url, query, what: "a software adapter", reason: /without a GPU/ });
  const plain = await launch({ webgpu: false });
  try {
    await choice(plain, { url, query, what: "no adapter", reason: /no adapter answers/ });
    await choice(plain, { url, query, what: "no WebGPU", reason: /has no WebGPU/, before: () => delete Navigator.prototype.gpu });
    await insecure(plain, { root, tiny, request, expected });
  } finally {
    await plain.close();
  }
}

async function choice(browser, { url, query, what, reason, before }) {
  const context = await browser.newContext();
  if (before) await context.addInitScript(before);
  const page = await open(context, url, query);
  const { facts } = await ready(page);
  const text = await page.locator("#why-cpu").textContent();
  claim(`with ${what} the page computes on the processor and says why`, facts.device === "cpu" && reason.test(text), `${facts.device}: ${text}`);
  await context.close();
}

/** An address of this machine that is not its loopback. */
function ownAddress() {
  return Object.values(os.networkInterfaces()).flat().find((one) => one.family === "IPv4" && !one.internal)?.address;
}

async function insecure(browser, { root, tiny, request, expected }) {
  const host = ownAddress();
  if (!host) return console.log("     this machine has no address but its loopback: insecure pages are not tested");
  const { server, url } = await serve(`${root}/web-demo/page/dist`, "", host);
  const hub = await serveHub("org/tiny", tiny, host);
  const context = await browser.newContext();
  const page = await open(context, url, `model=org/tiny&hub=${hub.url}`);
  const { facts, sha256 } = await ready(page);
  const text = await page.locator("#status").textContent();
  claim("a page over plain http computes on the processor", facts.device === "cpu" && /plain http/.test(text), text);
  claim("and says that hashes are not checked and nothing is stored", sha256 === null && text.includes("hash not checked") && text.includes("store nothing"), text);
  const [answer] = await ask(page, [request]);
  claim("and gives the right tokens", String(answer.tokens) === String(expected), answer.reason);
  const shown = await page.locator("#first-answer").textContent();
  claim("the first answer's time is shown", /first answer after \d+\.\d s/.test(shown), shown);
  await page.goto(`${url}?device=webgpu&model=org/tiny&hub=${hub.url}`);
  await page.waitForFunction(() => globalThis.firebrick?.engine.status.state === "failed");
  const refused = await page.evaluate(() => globalThis.firebrick.engine.status.message);
  claim("WebGPU that is asked for there is refused with the reason", refused.includes("plain http"), refused);
  await context.close();
  [server, hub.server].forEach((one) => one.close());
  return undefined;
}
