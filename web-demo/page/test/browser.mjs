// What the page's tests share: a server of static files, Chromium with a software WebGPU adapter, and claims.

import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { chromium } from "playwright-core";

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".json": "application/json" };

const LOOPBACK = "127.0.0.1";

/** Serves a folder on a free port of this machine, with `before` before the worker's program. */
export async function serve(folder, before = "", host = LOOPBACK) {
  const root = path.resolve(folder);
  const server = http.createServer((request, response) => {
    const wanted = path.normalize(decodeURIComponent(request.url.split("?")[0])).replace(/\/$/, "/index.html");
    const file = path.join(root, wanted);
    if (!file.startsWith(root) || !fs.existsSync(file)) {
      response.statusCode = 404;
      return response.end();
    }
    response.setHeader("content-type", TYPES[path.extname(file)] ?? "application/octet-stream");
    if (/\/worker-[^/]*\.js$/.test(file)) response.write(before);
    return fs.createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, host, resolve));
  return { server, url: `http://${host}:${server.address().port}/` };
}

/** A hub with one model, as far as the page asks one. `damage` changes the first byte of what is sent for a file. */
export async function serveHub(id, folder, host = LOOPBACK) {
  const fetched = [];
  let damaged = null;
  const listed = fs.readdirSync(folder).map((name) => {
    const bytes = fs.readFileSync(path.join(folder, name));
    const git = createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
    const large = name.endsWith(".safetensors") && { lfs: { oid: createHash("sha256").update(bytes).digest("hex"), size: bytes.length } };
    return { type: "file", path: name, size: bytes.length, oid: git, ...large };
  });
  const server = http.createServer((request, response) => {
    response.setHeader("access-control-allow-origin", "*");
    if (request.url === `/api/models/${id}/tree/main`) return response.end(JSON.stringify(listed));
    const [, name] = request.url.split(`/${id}/resolve/main/`);
    if (!listed.some((file) => file.path === name)) {
      response.statusCode = 404;
      return response.end();
    }
    fetched.push(name);
    const bytes = fs.readFileSync(path.join(folder, name));
    if (name === damaged) bytes[0] ^= 1;
    return response.end(bytes);
  });
  await new Promise((resolve) => server.listen(0, host, resolve));
  return { server, url: `http://${host}:${server.address().port}`, fetched, damage: (name) => (damaged = name) };
}

export function runPython(...args) {
  execFileSync("python3", args, { stdio: "inherit" });
}

/** `firebrick serve` as a process of its own, on a free port unless the flags name one. */
export async function startFirebrick(binary, flags) {
  const port = flags.includes("--port") ? [] : ["--port", "0"];
  const child = spawn(binary, ["serve", ...flags, ...port], { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, NO_COLOR: "1" } });
  let log = "";
  child.stdout.on("data", (data) => (log += data));
  child.stderr.on("data", (data) => (log += data));
  const ended = new Promise((resolve) => child.on("exit", resolve));
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
  };
  for (let tries = 0; tries * 100 < PATIENCE_MS; tries += 1) {
    const found = /listening on (http:\/\/[^ ;]*:\d+)/.exec(log);
    if (child.exitCode !== null) break;
    if (found && log.includes("Application startup complete")) return { url: `${found[1]}/`, stop };
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await stop();
  throw new Error(`the server did not come up: ${log}`);
}

/** How long anything may take. Nothing here is judged by its speed: machines may be slow, and busy with other things. */
const PATIENCE_MS = 300_000;

/** Debian's Chromium, headless. Without a GPU, WebGPU comes from SwiftShader, which these two flags ask for. */
export async function launch({ webgpu }) {
  const gpu = webgpu ? ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] : [];
  const quiet = ["--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true, args: [...gpu, ...quiet] });
  const newContext = browser.newContext.bind(browser);
  browser.newContext = async (options) => {
    const context = await newContext(options);
    context.setDefaultTimeout(PATIENCE_MS);
    return context;
  };
  return browser;
}

let failures = 0;

/** States a claim and whether it holds. */
export function claim(text, holds, detail = "") {
  console.log(`${holds ? "ok  " : "FAIL"} ${text}${holds || detail === "" ? "" : `: ${detail}`}`);
  if (!holds) failures += 1;
}

export const failed = () => failures > 0;

/** Opens the page and waits until its model is loaded. */
export async function open(context, url, query) {
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && console.log("console:", message.text()));
  page.on("pageerror", (error) => console.log("page error:", error.message));
  await page.goto(`${url}?${query}`);
  await ready(page);
  return page;
}

/** Waits for the model, however long the weights take, but not for a failure. */
export async function ready(page) {
  await page.waitForFunction(() => ["ready", "failed"].includes(globalThis.firebrick?.engine.status.state));
  const status = await page.evaluate(() => globalThis.firebrick.engine.status);
  if (status.state !== "ready") throw new Error(`the engine did not come up: ${status.message}`);
  return status.ready;
}

/** Answers to several requests at once: `{ tokens, text, reason }` each, and the steps they took. */
export function ask(page, requests) {
  return page.evaluate((requests) => {
    const { engine } = globalThis.firebrick;
    const one = (request) => new Promise((resolve) => {
      const answer = { tokens: [], text: "", reason: "", promptTokens: 0, cachedTokens: 0 };
      engine.add(request, {
        accepted: (_, promptTokens) => (answer.promptTokens = promptTokens),
        scheduled: (cached) => (answer.cachedTokens = cached),
        token: (text, token) => {
          answer.tokens.push(token);
          answer.text += text;
        },
        finished: (text, reason) => resolve({ ...answer, text: answer.text + text, reason }),
      });
    });
    return Promise.all(requests.map(one));
  }, requests);
}

/** Greedy references of the real model. */
export function references(root) {
  return JSON.parse(fs.readFileSync(path.join(root, "tests/fixtures/real/smollm2.json"), "utf8")).cases;
}

/** Where a snapshot contradicts itself: blocks against block tables, counters against both. */
export function contradictions(engine) {
  const named = new Map();
  for (const sequence of engine.sequences) for (const block of sequence.blocks) named.set(block, (named.get(block) ?? 0) + 1);
  const wrong = engine.blocks.flatMap((block, index) => (block.references === (named.get(index) ?? 0) ? [] : [`block ${index} has ${block.references} references, tables name it ${named.get(index) ?? 0} times`]));
  const used = engine.blocks.filter((block) => block.references > 0).length;
  const cached = engine.blocks.filter((block) => block.references === 0 && block.cached).length;
  if (used !== engine.stats.blocks_used) wrong.push(`${used} blocks are used, the counter says ${engine.stats.blocks_used}`);
  if (cached !== engine.stats.blocks_cached) wrong.push(`${cached} blocks are cached, the counter says ${engine.stats.blocks_cached}`);
  return wrong;
}
