// Vercel's AI SDK through @ai-sdk/openai-compatible: generateText, streamText, an object that follows a schema.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const [baseURL, model, apiKey] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "firebrick", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const common = { model: provider(model), prompt: "Hello", maxOutputTokens: 12, temperature: 0, maxRetries: 0 };

const whole = await generateText(common);
assert.ok(whole.usage.outputTokens > 0);

const stream = streamText(common);
let text = "";
for await (const part of stream.textStream) text += part;
assert.equal(text, whole.text);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

const completion = await generateText({ ...common, model: provider.completionModel(model) });
assert.equal(typeof completion.text, "string");

const schema = z.object({ colour: z.enum(["red", "green", "blue"]), shiny: z.boolean() });
const made = await generateObject({ ...common, schema, maxOutputTokens: 400, temperature: 1, seed: 3 });
assert.ok(["red", "green", "blue"].includes(made.object.colour));
