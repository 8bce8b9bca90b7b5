// Puts the page together: the model at the top, conversations at the left, the engine at the right.

import { announceStatus } from "./announce";
import { AttachedPage } from "./attached";
import { Chat } from "./chat";
import { type Devices, findDevices } from "./devices";
import { bytes, el, fill } from "./dom";
import { EngineClient, type Ready } from "./engine_client";
import { Lesson } from "./lesson/lesson";
import { titleOf } from "./model_check";
import { OtherModels } from "./other_models";
import { PRESETS } from "./presets";
import type { DeviceName, EngineSettings, ModelEntry, ModelSource } from "./protocol";
import { RequestNames } from "./request_names";
import { BlockViews } from "./views/blocks";
import { motion, sizes } from "./views/controls";
import { Gauges } from "./views/gauges";
import { tabs } from "./views/tabs";
import { Timeline } from "./views/timeline";

const DEFAULTS: Omit<EngineSettings, "device"> = {
  block_size: 16,
  num_blocks: 64,
  max_num_batched_tokens: 64,
  max_num_seqs: 8,
  max_model_len: 1024,
  enable_prefix_caching: true,
  seed: 1,
};

/** Losses of the GPU in ten minutes after which the user is asked. */
const LOSSES_MAX = 3;

/** Sizes given in the address, such as `?num_blocks=16&device=cpu`. */
function settingsFrom(query: URLSearchParams, device: DeviceName): EngineSettings {
  const settings: EngineSettings = { ...DEFAULTS, device };
  for (const name of ["block_size", "num_blocks", "max_num_batched_tokens", "max_num_seqs", "max_model_len", "seed"] as const) {
    const value = Number(query.get(name));
    if (Number.isInteger(value) && value > 0) settings[name] = value;
  }
  if (query.get("device") === "cpu" || query.get("device") === "webgpu") settings.device = query.get("device") as DeviceName;
  return settings;
}

async function modelList(): Promise<ModelEntry[]> {
  const response = await fetch("models/models.json").catch(() => null);
  return response?.ok ? ((await response.json()) as ModelEntry[]) : [];
}

class Page {
  private readonly engine = new EngineClient();
  private readonly chats: Chat[] = [];
  private readonly names = new RequestNames();
  private readonly status = el("div", { class: "status", id: "status" });
  private readonly gauges = new Gauges(this.engine);
  private readonly blocks = new BlockViews(this.engine, this.names);
  private readonly timeline = new Timeline(this.names);
  private readonly engineForm = el("div");
  private readonly motion = motion(this.engine);
  private readonly loss = el("p", { class: "warning", id: "loss", role: "status", hidden: true });
  private settings: EngineSettings;
  private frame = 0;
  /** When the GPU was lost lately. */
  private losses: number[] = [];

  private readonly others: OtherModels;

  constructor(private readonly devices: Devices, private readonly models: ModelEntry[]) {
    const hubId = new URLSearchParams(location.search).get("model");
    this.others = new OtherModels({ models, hubId, load: (source) => this.load(source), isRunning: () => ["loading", "ready"].includes(this.engine.status.state) });
    this.settings = settingsFrom(new URLSearchParams(location.search), devices.names[0]!);
    document.querySelector("#app")!.replaceChildren(this.layout());
    this.engine.addEventListener("status", () => {
      if (this.engine.status.state === "loading") this.names.clear();
      this.showStatus();
      this.recover();
      if (this.engine.ready) this.others.loaded();
    });
    this.engine.addEventListener("step", () => this.drawSoon());
    this.engine.addEventListener("first-answer", () => this.showStatus());
    globalThis.addEventListener("pagehide", () => this.chats.forEach((chat) => chat.store()));
    globalThis.addEventListener("resize", () => this.drawSoon());
    this.noticeOtherTabs();
    // For tests and for the curious: everything the page shows comes from here.
    Object.assign(globalThis, { firebrick: { engine: this.engine, chats: this.chats } });
    this.showSizes();
    this.showStatus();
    if (hubId) this.others.chooseHub(hubId);
    else if (models[0]) this.load({ kind: "listed", entry: models[0] });
  }

  private layout(): HTMLElement {
    const presets = ["deterministic", "balanced", "creative", "chat"];
    for (let number = 1; number <= presets.length || Chat.isStored(number); number += 1) {
      this.chats.push(new Chat(this.engine, this.names, number, presets[number - 1] ?? presets[0]!));
    }
    const grid = el("div", { class: "chats", id: "chats" }, ...this.chats.map((chat) => chat.element));
    const add = el("button", { type: "button", onclick: () => {
      const chat = new Chat(this.engine, this.names, this.chats.length + 1, PRESETS[this.chats.length % PRESETS.length]!.name);
      this.chats.push(chat);
      grid.append(chat.element);
    } }, "Another chat");
    const everybody = el("input", { type: "text", id: "everybody", placeholder: "Ask all chats at once" });
    const askAll = el("form", { class: "everybody", onsubmit: (event) => {
      event.preventDefault();
      const text = everybody.value.trim() || "Tell me something interesting about bricks.";
      everybody.value = "";
      this.chats.forEach((chat) => chat.send(text));
    } }, el("label", { for: "everybody", class: "hidden" }, "Message for all chats"), everybody, el("button", { type: "submit" }, "Ask all"), add);
    return el("div", { class: "page" },
      el("nav", { class: "jump", "aria-label": "Parts of the page" }, el("a", { href: "#chats" }, "Conversations"), el("a", { href: "#engine" }, "The engine")),
      el("header", { class: "top" }, el("h1", {}, "Firebrick in a tab"), this.status, announceStatus(this.engine),
        this.loss, this.others.notice, this.others.element),
      el("main", { class: "left", "aria-label": "Conversations" }, askAll, grid),
      el("aside", { class: "right", id: "engine", "aria-label": "The engine" }, el("h2", {}, "The engine, step by step"), this.motion, this.gauges.element, this.tabs()));
  }

  private tabs(): HTMLElement {
    const lesson = new Lesson(this.engine, { fullSpeed: () => this.fullSpeed(), begin: () => this.noteAnswers() });
    return tabs("Views of the engine", [
      ["Blocks", this.blocks.element], ["Timeline", this.timeline.element], ["Lesson", lesson.element], ["Sizes", this.engineForm],
    ], () => this.drawSoon());
  }

  private load(source: ModelSource): void {
    void this.engine.load(source, this.settings);
  }

  private showSizes(): void {
    this.engineForm.replaceChildren(sizes(this.settings, this.devices.names, (settings) => {
      this.settings = settings;
      if (this.engine.source) void this.engine.load(this.engine.source, settings);
    }));
  }

  private showStatus(): void {
    const { status } = this.engine;
    this.status.dataset["state"] = status.state;
    switch (status.state) {
      case "empty":
        this.status.replaceChildren(`${this.models.length === 0 ? "No model lies beside this page" : "No model is loaded"}: open one below, drop its files here, or watch a server.`);
        break;
      case "loading": {
        const words = { program: "Loading the program", fetch: "Fetching the model", cache: "Reading the model", hash: "Checking the model", weights: "Putting weights on the device" };
        const part = status.total > 0 ? status.done / status.total : undefined;
        const amount = status.done > 0 ? ` ${bytes(status.done)}` : "";
        this.status.replaceChildren(`${words[status.phase]}${amount} `, el("progress", { max: 1, value: part, "aria-label": words[status.phase] }));
        break;
      }
      case "ready":
        this.showReady(status.ready);
        break;
      case "failed":
        this.showFailure(status.message, status.wasReady);
        break;
    }
  }

  private showReady({ facts, adapter, sha256, seconds }: Ready): void {
    const { reason } = this.devices;
    const { firstAnswer } = this.engine;
    fill(this.status,
      el("b", {}, facts.name), ` on ${adapter || "WebGPU"}, ${facts.dtype}, loaded in ${seconds.toFixed(1)} s, `,
      firstAnswer !== null && el("span", { id: "first-answer", title: "From asking to the first token" }, `first answer after ${firstAnswer.toFixed(1)} s, `),
      ...(sha256 ? ["SHA-256 ", el("code", { title: sha256 }, sha256.slice(0, 12))] : ["hash not checked"]), ".",
      !isSecureContext && el("span", { class: "warning", id: "insecure" }, " This page is not secure: without https:// or http://127.0.0.1 browsers compute no hashes and store nothing, so that the model is fetched each time, and a damaged file is not noticed by its hash."),
      facts.device === "cpu" && reason && el("span", { class: "warning", id: "why-cpu" }, ` The processor computes, slowly: ${reason}.`));
  }

  /** Why there is no engine, and the ways on: the same again, or what worked before. */
  private showFailure(message: string, wasReady: boolean): void {
    const { source, settings, lastGood } = this.engine;
    const what = wasReady || !source ? "The engine has stopped" : `${titleOf(source)} was not loaded`;
    const isOther = lastGood !== null && (lastGood.source !== source || lastGood.settings !== settings);
    const back = lastGood && (lastGood.source === source ? "Back to the sizes before" : `Back to ${titleOf(lastGood.source)}`);
    fill(this.status,
      el("span", { class: "error" }, `${what}: ${message}. `),
      isOther && el("button", { type: "button", id: "back", class: "primary", onclick: () => this.goBack() }, back), " ",
      source && el("button", { type: "button", id: "resume", class: isOther ? "" : "primary", onclick: () => void this.resume() }, wasReady ? "Resume" : "Try again"));
  }

  /** Sets the controls of the speed, as the user would. */
  private fullSpeed(): void {
    this.motion.querySelector<HTMLButtonElement>('[aria-pressed="true"]')?.click();
    const slow = this.motion.querySelector("select");
    if (!slow) return;
    slow.value = "0";
    slow.dispatchEvent(new Event("change"));
  }

  /** The engine that worked last, made anew; answers that were cut off go on. */
  private goBack(): void {
    const { lastGood } = this.engine;
    if (!lastGood) return;
    this.settings = lastGood.settings;
    this.showSizes();
    void this.goOnAfter(this.engine.load(lastGood.source, lastGood.settings));
  }

  /** Starts anew by itself when an engine that worked has lost its GPU; not again and again, for some devices stay lost. */
  private recover(): void {
    const { status } = this.engine;
    if (status.state !== "failed" || !status.isLoss) return;
    const now = Date.now();
    this.losses = [...this.losses.filter((at) => at > now - 600_000), now];
    this.loss.hidden = false;
    this.loss.textContent = `${new Date(now).toLocaleTimeString()}: ${status.message}.`;
    if (status.steps === 0 || this.losses.length > LOSSES_MAX) return;
    this.loss.textContent += " The engine starts anew, and answers that were cut off go on.";
    void this.resume();
  }

  /** A fresh worker with the same model, and the answers that were cut off go on. */
  private async resume(): Promise<void> {
    await this.goOnAfter(this.engine.resume());
  }

  private async goOnAfter(loading: Promise<Ready | null>): Promise<void> {
    if (await loading) this.chats.filter((chat) => chat.wasCutOff).forEach((chat) => chat.continue());
  }

  /** Lets those answers go on, when it is called, that were cut off since. */
  private noteAnswers(): () => void {
    const before = this.chats.filter((chat) => chat.wasCutOff);
    return () => this.chats.filter((chat) => chat.wasCutOff && !before.includes(chat)).forEach((chat) => chat.continue());
  }

  /** Two tabs work, but share one GPU and one memory: the second is told. */
  private noticeOtherTabs(): void {
    if (!navigator.locks) return;
    void navigator.locks.request("firebrick-tab", { ifAvailable: true }, (lock) => {
      if (lock) return new Promise(() => undefined);
      const warning = el("p", { class: "warning", id: "other-tab" }, "Another tab runs Firebrick too: both share this machine’s GPU, processor and memory.");
      document.querySelector(".top")!.append(warning);
      // Granted when the other tab is gone.
      void navigator.locks.request("firebrick-tab", () => {
        warning.remove();
        return new Promise(() => undefined);
      });
      return Promise.resolve();
    });
  }

  private drawSoon(): void {
    if (this.frame !== 0) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const latest = this.engine.latest;
      if (!latest) return;
      this.gauges.draw(this.engine.steps);
      if (!this.blocks.element.closest("[hidden]")) this.blocks.draw(latest.report.engine);
      if (!this.timeline.element.closest("[hidden]")) this.timeline.draw(this.engine.steps);
    });
  }
}

const attach = new URLSearchParams(location.search).get("attach");
if (attach !== null) {
  new AttachedPage(attach);
} else {
  const [devices, models] = await Promise.all([findDevices(), modelList()]);
  new Page(devices, models);
}
