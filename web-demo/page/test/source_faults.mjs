// Models that cannot be loaded: wrong files, folders that lack something, and names that no hub knows. The engine that runs
// must not notice. With the tiny model of `tiny.mjs`, which calls this.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { ask, claim, open, ready } from "./browser.mjs";

export async function sourceFaults({ browser, url, hub, tiny, request, expected }) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "firebrick-drops-"));
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, `device=cpu&model=org/tiny&hub=${hub}`);
  await page.evaluate(() => (globalThis.first = globalThis.firebrick.engine.ready));
  await wrongDrops(context, page, folder);
  await wrongNames(page);
  const [answer] = await ask(page, [request]);
  const same = await page.evaluate(() => globalThis.firebrick.engine.ready === globalThis.first);
  claim("after all refusals the same engine answers", same && String(answer.tokens) === String(expected), `${same} ${answer.reason}`);
  await rightDrop(context, page, tiny);
  await backToTheLastGood(page, folder);
  await context.close();
  fs.rmSync(folder, { recursive: true });
}

/** A real drag of files from outside the browser. */
async function drop(context, page, files) {
  const session = await context.newCDPSession(page);
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await session.send("Input.dispatchDragEvent", { type, x: 700, y: 500, data: { items: [], files, dragOperationsMask: 1 } });
  }
  await session.detach();
}

/** What the page says of the newest choice. */
async function refusal(page, title) {
  await page.waitForFunction((title) => document.querySelector("#refusal").textContent.startsWith(`${title} was not loaded`), title);
  return page.locator("#refusal").textContent();
}

async function wrongDrops(context, page, folder) {
  const write = (name, content) => {
    const file = path.join(folder, name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, content);
    return file;
  };
  const picture = write("holiday.png", Buffer.from("89504e470d0a1a0a", "hex"));
  write("half/config.json", "{}");
  write("half/notes.txt", "nothing");
  const drops = [
    ["a picture", "holiday.png", [picture], /GGUF/],
    ["a text file", "notes.txt", [write("notes.txt", "nothing")], /GGUF/],
    ["a text that is called a GGUF file", "named.gguf", [write("named.gguf", "nothing")], /does not begin as a GGUF file/],
    ["a folder with config.json alone", "half", [path.join(folder, "half")], /neither config.json with safetensors/],
  ];
  for (const [what, title, files, reason] of drops) {
    await drop(context, page, files);
    const text = await refusal(page, title);
    claim(`${what} that is dropped is refused, and the engine goes on`, reason.test(text) && text.includes("goes on"), text);
  }
}

async function wrongNames(page) {
  await page.getByText("Other models").click();
  for (const [name, reason] of [["no-name", /must look like org\/name/], ["org/none", /does not exist|answers 404/]]) {
    await page.locator("#hub-id").fill(name);
    await page.getByRole("button", { name: "Load" }).click();
    const text = await refusal(page, name);
    claim(`the name ${name} is refused, and the engine goes on`, reason.test(text) && text.includes("goes on"), text);
  }
  claim("the model beside the page can be chosen", (await page.locator("#listed button").count()) === 1);
}

async function rightDrop(context, page, tiny) {
  await drop(context, page, [tiny]);
  await page.waitForFunction(() => globalThis.firebrick.engine.source.kind === "files");
  await ready(page);
  claim("a folder that is dropped is loaded", (await page.locator("#status b").textContent()) === path.basename(tiny), await page.locator("#status").textContent());
}

/** What passes the check and fails all the same: the page offers what worked. */
async function backToTheLastGood(page, folder) {
  const file = path.join(folder, "cut.gguf");
  fs.writeFileSync(file, Buffer.concat([Buffer.from("GGUF"), Buffer.alloc(500)]));
  await page.setInputFiles("#file", file);
  await page.waitForFunction(() => globalThis.firebrick.engine.status.state === "failed");
  const text = await page.locator("#status").textContent();
  claim("a file that never was loaded is not said to have stopped", text.startsWith("cut.gguf was not loaded"), text);
  await page.getByRole("button", { name: "Back to tiny" }).click();
  await ready(page);
  claim("the model that worked last comes back with one click", await page.evaluate(() => globalThis.firebrick.engine.source.kind === "files"));
}
