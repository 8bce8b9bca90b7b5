// Conversations: answers of any content, sampling settings, clearing, copying and reloads. With the tiny model of `tiny.mjs`,
// which calls this.

import { claim, open, ready } from "./browser.mjs";

export async function chats({ browser, url, query }) {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  const page = await open(context, url, `device=cpu&max_model_len=512&${query}`);
  await sampling(page);
  await announced(page);
  await copied(context, page);
  await cleared(page);
  await fifthChat(page);
  await hostileAnswer(page);
  await context.close();
}

const answered = (page, chat = 0) => page.waitForFunction((chat) => !globalThis.firebrick.chats[chat].isAnswering, chat);
const lastText = (page, chat = 0) => page.evaluate((chat) => globalThis.firebrick.chats[chat].turns.at(-1)?.content, chat);

async function say(page, text, chat = 0) {
  await page.locator(`#chat-${chat + 1}-input`).fill(text);
  await page.keyboard.press("Enter");
}

async function sampling(page) {
  const chat = page.locator(".chat").first();
  await chat.getByText("Sampling", { exact: true }).click();
  await page.evaluate(() => {
    const { engine } = globalThis.firebrick;
    const add = engine.add.bind(engine);
    engine.add = (request, listener) => add((globalThis.asked = request), listener);
  });
  await chat.getByLabel("Temperature").fill("1.5");
  await chat.getByLabel("Top p").fill("0.8");
  await chat.getByLabel("Max tokens").fill("12");
  await chat.getByLabel("Seed").fill("7");
  await say(page, "tell me");
  await answered(page);
  const asked = await page.evaluate(() => globalThis.asked.sampling);
  claim("a chat samples as its fields say", JSON.stringify(asked) === JSON.stringify({ temperature: 1.5, top_p: 0.8, max_tokens: 12, seed: 7 }), JSON.stringify(asked));
  const first = await lastText(page);
  await chat.getByRole("button", { name: "Regenerate" }).click();
  await answered(page);
  claim("the same seed gives the same answer", first.length > 0 && (await lastText(page)) === first, `${first} | ${await lastText(page)}`);
  await chat.getByLabel("Top p").fill("3");
  await say(page, "again");
  claim("a number that cannot be is not sent", !(await page.evaluate(() => globalThis.firebrick.chats[0].isAnswering)) && (await page.locator("#chat-1-input").inputValue()) === "again");
  await page.locator("#chat-1-preset").selectOption("creative");
  claim("a preset fills the fields", (await chat.getByLabel("Top p").inputValue()) === "0.95" && (await chat.getByLabel("Seed").inputValue()) === "");
  await chat.getByLabel("Max tokens").fill("12");
}

async function announced(page) {
  const [spoken, shown] = await page.evaluate(() => [".spoken", ".turn.assistant .text"].map((selector) => document.querySelector(`.chat ${selector}`).textContent.trim()));
  claim("the end of an answer is said to screen readers, with the answer", spoken.startsWith("Chat 1, 12 tokens") && spoken.endsWith(shown), spoken);
  const loading = await page.evaluate(async () => {
    const said = new Set();
    new MutationObserver(() => said.add(document.querySelector("#spoken-status").textContent)).observe(document.querySelector("#spoken-status"), { childList: true });
    const { engine } = globalThis.firebrick;
    await engine.load(engine.source, engine.settings);
    await new Promise((resolve) => setTimeout(resolve));
    return [...said];
  });
  claim("loading is said in few words", loading.length <= 4 && loading.at(-1).includes("is loaded"), JSON.stringify(loading));
}

async function copied(context, page) {
  const button = page.locator(".chat").first().locator(".actions button").first();
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await button.click();
  await page.waitForFunction(() => document.querySelector(".chat .actions button").textContent === "Copied");
  claim("a copied answer is said to be copied", (await page.evaluate(() => navigator.clipboard.readText())).trim() === (await lastText(page)).trim());
  // What a page that is not secure finds.
  await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { configurable: true, value: undefined }));
  await button.click();
  await page.waitForFunction(() => document.querySelector(".chat .note").textContent.includes("did not copy"));
  claim("a browser that refuses to copy is said to refuse", true);
}

async function cleared(page) {
  const chat = page.locator(".chat").nth(1);
  // Room for the next message in the model's length.
  await page.locator("#chat-2-max_tokens").evaluate((input) => (input.value = "24"));
  await page.locator("#slow").selectOption("200");
  await say(page, "tell me", 1);
  await page.waitForFunction(() => (globalThis.firebrick.chats[1].turns.at(-1)?.content ?? "").length > 2);
  await chat.getByRole("button", { name: "Clear chat 2" }).click();
  await say(page, "again", 1);
  const turns = await page.evaluate(() => globalThis.firebrick.chats[1].turns.map((turn) => turn.content));
  claim("a message right after a chat was cleared is answered", turns.length === 2 && turns[0] === "again", JSON.stringify(turns));
  await page.locator("#slow").selectOption("0");
  await answered(page, 1);
  await page.waitForFunction(() => globalThis.firebrick.engine.latest?.report.engine.stats.running === 0);
  claim("and the answer that was cleared away goes nowhere", (await page.evaluate(() => globalThis.firebrick.chats[1].turns.length)) === 2);
  await page.locator("#slow").selectOption("200");
  await say(page, "more", 1);
  await page.waitForFunction(() => document.querySelectorAll(".chat")[1].querySelector(".badge").textContent !== "");
  await chat.getByRole("button", { name: "Clear chat 2" }).click();
  await page.reload();
  await ready(page);
  const note = await chat.locator(".note").textContent();
  claim("an empty chat does not offer to continue after a reload", !note.includes("Continue"), note);
}

async function fifthChat(page) {
  await page.getByRole("button", { name: "Another chat" }).click();
  await page.locator("#chat-5-max_tokens").evaluate((input) => (input.value = "8"));
  await say(page, "the fifth", 4);
  await answered(page, 4);
  const before = await lastText(page, 4);
  await page.reload();
  await ready(page);
  claim("a fifth chat outlives a reload, with its settings", (await lastText(page, 4)) === before && (await page.locator("#chat-5-max_tokens").inputValue()) === "8");
}

const HOSTILE = `
<script>globalThis.harmed = true</script><img src="x" onerror="globalThis.harmed = true"><img src="/stolen.png">
<video poster="/stolen.png" src="/stolen.mp4"></video><a href="javascript:globalThis.harmed = true">one</a>

[two](javascript:alert(1)) ![three](/stolen.png) <b style="position:fixed" class="page" id="app">four</b>
<iframe src="/stolen"></iframe><form action="/stolen"><input></form>

[five](https://example.org/ "title") \`code\`

3. a third item

| a | b |
|---|--:|
| 1 | 2 |
`;

async function hostileAnswer(page) {
  const fetched = [];
  page.on("request", (request) => request.url().includes("stolen") && fetched.push(request.url()));
  const stored = await page.evaluate(() => sessionStorage.getItem("firebrick-chat-1"));
  // The page writes its conversations when it is left, so that the planted one goes in when it begins anew.
  await page.addInitScript((stored) => sessionStorage.setItem("firebrick-chat-1", stored),
    JSON.stringify({ ...JSON.parse(stored), turns: [{ role: "user", content: "?" }, { role: "assistant", content: HOSTILE }] }));
  await page.reload();
  await ready(page);
  const seen = await page.evaluate(() => {
    const answer = document.querySelector(".turn.assistant .text");
    const elements = [...answer.querySelectorAll("*")];
    return {
      harmed: globalThis.harmed ?? false,
      tags: [...new Set(elements.map((element) => element.localName))].toSorted(),
      attributes: [...new Set(elements.flatMap((element) => element.getAttributeNames()))].toSorted(),
      links: [...answer.querySelectorAll("a[href]")].map(({ href, target, rel }) => ({ href, target, rel })),
      start: answer.querySelector("ol")?.start,
    };
  });
  claim("nothing in an answer runs or is fetched", !seen.harmed && fetched.length === 0, `${fetched}`);
  const tags = ["a", "br", "code", "li", "ol", "p", "table", "tbody", "td", "th", "thead", "tr"];
  const attributes = ["align", "href", "rel", "start", "target", "title"];
  claim("of an answer only Markdown is left", seen.tags.every((tag) => tags.includes(tag)) && String(seen.attributes) === String(attributes), JSON.stringify(seen));
  claim("Markdown's own numbers and tables are kept", seen.start === 3 && seen.tags.includes("table"));
  const [link] = seen.links;
  claim("links open in a tab of their own, without a hold on this one", seen.links.length === 1 && link.href === "https://example.org/" && link.target === "_blank" && link.rel === "noopener noreferrer", JSON.stringify(seen.links));
}
