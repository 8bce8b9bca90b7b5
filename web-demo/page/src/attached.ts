// The page over a running server: the same views, drawn from its event stream.

import { el, fill } from "./dom";
import { type Connection, ServerClient } from "./server_client";
import { BlockViews } from "./views/blocks";
import { Gauges } from "./views/gauges";
import { Timeline } from "./views/timeline";

/** Where this page's own server is: above the folder in which it serves the page. */
function ownServer(): URL {
  return new URL(location.pathname.includes("/ui/") ? "../" : "./", location.href.split("?")[0]);
}

/** An address as it was typed; `null` when it is none. */
function parseAddress(text: string): URL | null {
  if (text === "") return ownServer();
  const url = URL.parse(/^https?:\/\//i.test(text) ? text : `http://${text}`);
  if (!url) return null;
  url.search = "";
  url.hash = "";
  // The API's own folder is often part of the address.
  url.pathname = url.pathname.replace(/\/(v1\/?)?$/, "") + "/";
  return url;
}

const KEY = "firebrick-server-key";

/** The key stays in this tab, and never in the address. */
const storedKey = {
  get: (server: URL): string => sessionStorage.getItem(`${KEY} ${server.href}`) ?? "",
  set: (server: URL, key: string) => sessionStorage.setItem(`${KEY} ${server.href}`, key),
};

export class AttachedPage {
  private readonly status = el("div", { class: "status", role: "status", id: "status" });
  private readonly views = el("div", { class: "watch" });
  private readonly address = el("input", { type: "text", id: "address", spellcheck: "false", autocomplete: "off" });
  private readonly key = el("input", { type: "password", id: "key", autocomplete: "off", placeholder: "the server's --admin-key" });
  private client: ServerClient | null = null;

  constructor(address: string) {
    const server = parseAddress(address);
    this.address.value = server?.href ?? address;
    this.key.value = server ? storedKey.get(server) : "";
    const form = el("form", { class: "attach", onsubmit: (event) => { event.preventDefault(); this.attach(); } },
      el("label", { for: "address" }, "Server"), this.address, el("label", { for: "key" }, "Key"), this.key,
      el("button", { type: "submit", class: "primary" }, "Watch"));
    document.querySelector("#app")!.replaceChildren(el("div", { class: "page" },
      el("header", { class: "top" }, el("h1", {}, "Firebrick, watching a server"), this.status, form, el("a", { href: location.pathname }, "Run a model in this tab instead")),
      el("main", { class: "whole", id: "chats" }, this.views)));
    if (this.key.value) this.attach();
    else this.say("Give the key of a server that was started with --trace and --admin-key.");
  }

  private say(text: string, isError = false): void {
    fill(this.status, el("span", { class: isError ? "error" : "" }, text));
  }

  private attach(): void {
    const server = parseAddress(this.address.value.trim());
    if (!server) return this.say(`“${this.address.value}” is no address: it must look like http://127.0.0.1:8000`, true);
    storedKey.set(server, this.key.value);
    history.replaceState(null, "", `?attach=${encodeURIComponent(server.href)}`);
    this.client?.close();
    const client = new ServerClient(server, this.key.value);
    this.client = client;
    Object.assign(globalThis, { firebrick: { server: client } });
    this.draw(client);
  }

  private draw(client: ServerClient): void {
    const [gauges, blocks, timeline] = [new Gauges(client), new BlockViews(client, null), new Timeline(null)];
    this.views.replaceChildren(gauges.element, el("section", { "aria-label": "Batches" }, timeline.element), el("section", { "aria-label": "Blocks" }, blocks.element));
    let frame = 0;
    client.addEventListener("step", () => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        if (!client.latest) return;
        gauges.draw(client.steps);
        timeline.draw(client.steps);
        blocks.draw(client.latest.report.engine);
      });
    });
    client.addEventListener("connection", () => {
      if (client === this.client) this.show(client.connection);
    });
    this.show(client.connection);
  }

  private show(connection: Connection): void {
    this.status.dataset["state"] = connection.state;
    switch (connection.state) {
      case "connecting":
        return this.say("Connecting …");
      case "watching":
        return fill(this.status, el("b", {}, connection.facts.model), ` on ${connection.facts.device}, Firebrick ${connection.facts.version}`);
      case "ended":
        return this.say(`Not connected: ${connection.message}.${connection.again === null ? "" : ` Trying again in ${connection.again} s.`}`, true);
    }
  }
}
