// The Web Worker that owns the engine. The page never computes: it sends requests and draws what comes back.

import init, { ModelFiles, Tab } from "../pkg/firebrick_web.js";
import programUrl from "../pkg/firebrick_web_bg.wasm?url";
import { findAdapter } from "./devices";
import { openModel, type Progress } from "./model_store";
import type { ChatRequest, FromWorker, Load, StepReport, ToWorker } from "./protocol";

let tab: Tab | null = null;
let device: GPUDevice | null = null;
let adapterName = "";
let paused = false;
let stepsAllowed = 0;
let audits = false;
/** Requests that were aborted since the last step, whose end the next step will tell. */
let aborted: number[] = [];
let delay = 0;
let wake: (() => void) | null = null;
/** One for each large buffer on the GPU: done when the browser has found memory for it. */
let buffersChecked: Promise<void>[] = [];

const send = (message: FromWorker) => postMessage(message);
const describe = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** Lets messages of the page in between two steps; a timer would be held back in a background tab. */
function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

/** Remembers the device that the engine asks for, to hear of its loss. */
function watchDevice(): void {
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (this: GPUAdapter, descriptor?: GPUDeviceDescriptor) {
    const opened = await request.call(this, descriptor);
    device = opened;
    const { vendor, architecture, description } = this.info;
    adapterName = description || [vendor, architecture].filter(Boolean).join(" ");
    opened.lost.then((info) => send({ type: "lost", message: info.message || info.reason }));
    return opened;
  };
}

/** A browser refuses a shader without saying why where it is used: the reason is put on the console. */
function explainShaders(): void {
  const create = GPUDevice.prototype.createShaderModule;
  GPUDevice.prototype.createShaderModule = function (this: GPUDevice, descriptor: GPUShaderModuleDescriptor) {
    const module = create.call(this, descriptor);
    void module.getCompilationInfo().then(({ messages }) => {
      const lines = descriptor.code.split("\n");
      for (const { type, lineNum, message } of messages) {
        if (type === "error") console.error(`shader refused, line ${lineNum} (${lines[lineNum - 1]?.trim()}): ${message}`);
      }
    });
    return module;
  };
}

/**
 * A browser tells of a buffer that found no memory only later, and computes nonsense with it until then. So large ones are
 * asked about, and the page hears what there was no room for.
 */
function noticeShortage(): void {
  const LARGE = 1 << 20;
  const create = GPUDevice.prototype.createBuffer;
  let held = 0;
  GPUDevice.prototype.createBuffer = function (this: GPUDevice, descriptor: GPUBufferDescriptor) {
    if (descriptor.size < LARGE) return create.call(this, descriptor);
    const before = held;
    held += descriptor.size;
    this.pushErrorScope("out-of-memory");
    const buffer = create.call(this, descriptor);
    const checked = this.popErrorScope().then((error) => {
      if (!error) return;
      const megabytes = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;
      const message = `the GPU has no room for a buffer of ${megabytes(descriptor.size)} beside ${megabytes(before)} that the model has there already: choose fewer or smaller blocks, or a smaller model, or close what else uses the GPU`;
      send({ type: "failed", message });
      throw new Error(message);
    }, () => undefined); // a lost device is told elsewhere
    checked.catch(() => undefined);
    buffersChecked.push(checked);
    return buffer;
  };
}

/** Starts the program. The page keeps what was compiled, so that later workers start at once. */
async function start(compiled: WebAssembly.Module | null): Promise<void> {
  const module = compiled ?? (await compile());
  if (!compiled) send({ type: "program", module });
  await init({ module_or_path: module });
}

async function compile(): Promise<WebAssembly.Module> {
  const response = await fetch(programUrl);
  if (!response.ok) throw new Error(`the server answers ${response.status} for the page's program`);
  // Servers that give WebAssembly another type only make it slower.
  const streams = response.headers.get("content-type") === "application/wasm";
  return streams ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer());
}

async function load({ source, settings, program: compiled }: Load): Promise<void> {
  const started = performance.now();
  const progress: Progress = (phase, done, total) => send({ type: "progress", phase, done, total });
  if (settings.device === "webgpu") {
    const found = await findAdapter();
    if (!found.adapter) throw new Error(found.reason);
    watchDevice();
    explainShaders();
    noticeShortage();
  }
  send({ type: "progress", phase: "program", done: 0, total: 1 });
  const program = start(compiled);
  const page = new URL("./", self.location.href.replace(/assets\/[^/]*$/, ""));
  const model = await openModel(source, page.href, progress);
  await program;
  const files = new ModelFiles();
  // Each leaves JavaScript's memory as soon as it is in the program's.
  for (let file = model.files.pop(); file; file = model.files.pop()) files.add(file.name, file.bytes);
  let told = 0;
  const loaded = (done: number) => {
    if (performance.now() - told < 100) return;
    told = performance.now();
    send({ type: "progress", phase: "weights", done, total: 0 });
  };
  tab = await Tab.load(files, JSON.stringify({ name: model.name, ...settings }), loaded);
  await Promise.all(buffersChecked);
  buffersChecked = [];
  send({
    type: "ready",
    facts: JSON.parse(tab.facts()),
    adapter: settings.device === "cpu" ? "WebAssembly, one core" : adapterName,
    sha256: model.sha256,
    fromCache: model.fromCache,
    seconds: (performance.now() - started) / 1000,
  });
  const state: StepReport = { events: [], rows: [], engine: JSON.parse(tab.snapshot()) };
  send({ type: "step", report: state, seconds: 0, at: performance.now() });
  await run(tab);
}

/** An engine whose GPU is gone may say so before the browser does: the browser's word comes first. */
async function explain(error: unknown): Promise<void> {
  const patience = new Promise<null>((resolve) => setTimeout(() => resolve(null), 500));
  const lost = device ? await Promise.race([device.lost, patience]) : null;
  if (!lost) send({ type: "failed", message: describe(error) });
}

/** Steps as long as there is work, for ever. */
async function run(engine: Tab): Promise<void> {
  for (;;) {
    if (!engine.has_work()) stepsAllowed = 0;
    if (!engine.has_work() || (paused && stepsAllowed === 0)) {
      tellAborted(engine);
      await new Promise<void>((resolve) => (wake = resolve));
      continue;
    }
    stepsAllowed = Math.max(0, stepsAllowed - 1);
    aborted = [];
    const started = performance.now();
    const report: StepReport = JSON.parse(await engine.step());
    const now = performance.now();
    if (audits) engine.audit();
    report.audited = audits;
    send({ type: "step", report, seconds: (now - started) / 1000, at: now });
    if (delay > 0) await new Promise((resolve) => setTimeout(resolve, delay));
    else await nextTask();
  }
}

/** Between steps an abort takes effect at once, but the engine tells of it with its next step, for which a paused page waits. */
function tellAborted(engine: Tab): void {
  if (aborted.length === 0) return;
  const events: StepReport["events"] = aborted.map((request) => ({ kind: "finished", request, text: "", reason: "abort" }));
  aborted = [];
  send({ type: "step", report: { events, rows: [], engine: JSON.parse(engine.snapshot()) }, seconds: 0, at: performance.now() });
}

function add(ticket: number, request: ChatRequest): void {
  try {
    if (!tab) throw new Error("the model is not loaded");
    const accepted = JSON.parse(tab.add(JSON.stringify(request)));
    send({ type: "accepted", ticket, request: accepted.request, promptTokens: accepted.prompt_tokens, maxTokens: accepted.max_tokens });
  } catch (error) {
    send({ type: "rejected", ticket, message: describe(error) });
  }
}

function handle(message: ToWorker): void {
  switch (message.type) {
    case "load":
      load(message).catch((error) => void explain(error));
      break;
    case "add":
      add(message.ticket, message.request);
      break;
    case "abort":
      tab?.abort(message.request);
      aborted.push(message.request);
      break;
    case "pause":
      paused = message.paused;
      stepsAllowed = 0;
      break;
    case "single-step":
      stepsAllowed += 1;
      break;
    case "audit":
      audits = true;
      break;
    case "delay":
      delay = message.milliseconds;
      break;
    case "block":
      send({ type: "block", ticket: message.ticket, tokens: tab ? JSON.parse(tab.tokens_in_block(message.block)) : [] });
      break;
    case "lose-device":
      device?.destroy();
      break;
  }
  wake?.();
  wake = null;
}

self.onmessage = (event: MessageEvent<ToWorker>) => handle(event.data);
self.onunhandledrejection = (event) => void explain(event.reason);
