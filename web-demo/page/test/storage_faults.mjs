// What can go wrong with the browser's storage: damaged files, a disk that is full or bad; and the list of what is stored.
// With the tiny model of `tiny.mjs`, which calls this.

import { ask, claim, open, ready, serve } from "./browser.mjs";

/** Put before the worker's program: a disk that holds half of every file. */
const FULL_DISK = `
  const { write } = FileSystemSyncAccessHandle.prototype;
  FileSystemSyncAccessHandle.prototype.write = function (bytes, options) {
    write.call(this, bytes.subarray(0, bytes.length >> 1), options);
    throw new DOMException("planted", "QuotaExceededError");
  };
`;

/** A disk that damages what it is given and never removes anything. */
const BAD_DISK = `
  const { write } = FileSystemSyncAccessHandle.prototype;
  FileSystemSyncAccessHandle.prototype.write = function (bytes, options) {
    return write.call(this, bytes.map((byte) => byte ^ 1), options);
  };
  FileSystemDirectoryHandle.prototype.removeEntry = () => Promise.reject(new DOMException("planted", "InvalidStateError"));
`;

export async function storageFaults({ browser, root, url, hub, query, request, expected }) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, `device=cpu&${query}`);
  const right = async (what) => {
    const [answer] = await ask(page, [request]);
    claim(what, String(answer.tokens) === String(expected), `${answer.tokens} ${answer.reason}`);
  };
  const again = async () => {
    hub.fetched.length = 0;
    await page.reload();
    return ready(page);
  };
  await damage(page);
  const { fromCache } = await again();
  await right("a damaged file of the storage is fetched again");
  claim("it alone", !fromCache && hub.fetched.length === 1, String(hub.fetched));
  claim("and is stored again", (await again()).fromCache && hub.fetched.length === 0, String(hub.fetched));
  await list(page);
  claim("models that were removed are fetched again", !(await again()).fromCache && hub.fetched.includes("model.safetensors"), String(hub.fetched));
  await context.close();

  const full = await planted(browser, { root, query, hub, request, expected, before: FULL_DISK });
  claim("a full disk only makes loading slower", full.right && full.fetched === full.files, JSON.stringify(full));
  claim("and keeps nothing that was cut off", full.stored.length === 0, String(full.stored));
  const bad = await planted(browser, { root, query, hub, request, expected, before: BAD_DISK });
  claim("a bad file that cannot be removed is fetched again, once", bad.right && bad.fetched === bad.files, JSON.stringify(bad));
}

/** The names in the storage. */
const stored = (page) => page.evaluate(async () => {
  const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("firebrick-models", { create: true });
  return Array.fromAsync(folder.keys());
});

/** Changes the first byte of the largest stored file. */
function damage(page) {
  return page.evaluate(async () => {
    const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("firebrick-models");
    const handles = await Array.fromAsync(folder.values());
    const files = await Promise.all(handles.map(async (handle) => ({ handle, file: await handle.getFile() })));
    const { handle, file } = files.reduce((one, other) => (other.file.size > one.file.size ? other : one));
    const bytes = new Uint8Array(await file.arrayBuffer());
    bytes[0] ^= 1;
    const writable = await handle.createWritable();
    await writable.write(bytes);
    await writable.close();
  });
}

async function list(page) {
  await page.getByText("Other models").click();
  const row = page.locator("#stored .motion");
  await row.first().waitFor();
  const text = await row.allInnerTexts();
  claim("the stored model is listed with its size", text.length === 1 && /^org\/tiny, \d+(\.\d)? [KM]B/.test(text[0]), String(text));
  await page.getByRole("button", { name: "Remove org/tiny from the storage" }).click();
  await page.locator("#stored").waitFor({ state: "hidden" });
  claim("it can be removed", (await stored(page)).length === 0, String(await stored(page)));
}

/** Loads the model twice with a fault in the worker: what was fetched the second time, and what is stored then. */
async function planted(browser, { root, query, hub, request, expected, before }) {
  const { server, url } = await serve(`${root}/web-demo/page/dist`, before);
  const context = await browser.newContext();
  hub.fetched.length = 0;
  const page = await open(context, url, `device=cpu&${query}`);
  const files = hub.fetched.length;
  hub.fetched.length = 0;
  await page.reload();
  await ready(page);
  const [answer] = await ask(page, [request]);
  const result = { files, fetched: hub.fetched.length, right: String(answer.tokens) === String(expected), stored: await stored(page) };
  await context.close();
  server.close();
  return result;
}
