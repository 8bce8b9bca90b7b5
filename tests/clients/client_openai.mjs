// The OpenAI package for Node: chat, completions, streams, aborts, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const common = { model, messages, max_tokens: 12, temperature: 0 };

const cards = await client.models.list();
assert.ok(cards.data.some((card) => card.id === model));

const whole = await client.chat.completions.create(common);
assert.ok(["stop", "length"].includes(whole.choices[0].finish_reason));
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

let text = "";
let usage = null;
const stream = await client.chat.completions.create({ ...common, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const helper = client.chat.completions.stream(common);
assert.equal((await helper.finalChatCompletion()).choices[0].message.content, text);

const long = await client.chat.completions.create({ ...common, max_tokens: 4000, stream: true });
for await (const chunk of long) {
  assert.ok(chunk.choices);
  long.controller.abort();
  break;
}

const plain = await client.completions.create({ model, prompt: ["Once", "Twice"], max_tokens: 4, n: 2 });
assert.deepEqual(plain.choices.map((choice) => choice.index), [0, 1, 2, 3]);

await assert.rejects(client.chat.completions.create({ ...common, top_p: 7 }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ ...common, model: "nothing" }), OpenAI.NotFoundError);
const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
await assert.rejects(stranger.chat.completions.create(common), OpenAI.AuthenticationError);
