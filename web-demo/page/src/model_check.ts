// What can be known of a model before it is loaded. A running engine ends only for a source that has passed, so that a
// picture dropped by mistake, or a misspelt name, costs nothing.

import { bytes } from "./dom";
import { choose, listModel } from "./hub";
import type { ModelSource } from "./protocol";

/** WebAssembly addresses 4 GiB, and a model is in there twice while it moves to the device. */
const MODEL_BYTES_MAX = 3_000_000_000;

export const titleOf = (source: ModelSource): string => {
  switch (source.kind) {
    case "listed":
      return source.entry.name;
    case "hub":
      return source.id;
    case "files":
      return source.name;
  }
};

/** The source, if nothing speaks against loading it; otherwise an error that says what does. */
export async function check(source: ModelSource): Promise<void> {
  switch (source.kind) {
    case "listed":
      return;
    case "hub":
      return refuseTooLarge(source.id, (await listModel(source.id, source.endpoint)).map((entry) => entry.bytes));
    case "files":
      return checkFiles(source.name, source.files);
  }
}

/** A tab has no room for every model. */
export function refuseTooLarge(name: string, sizes: number[]): void {
  const total = sizes.reduce((sum, size) => sum + size, 0);
  if (total > MODEL_BYTES_MAX) throw new Error(`${name} has ${bytes(total)}; a browser tab has room for ${bytes(MODEL_BYTES_MAX)}`);
}

/** The files that a model needs, out of all in its folder. One alone is taken for a GGUF file, whatever its name. */
export function wantedFiles(name: string, files: File[]): File[] {
  if (files.length === 1) return files;
  const names = choose(name, files.map((file) => file.name), null);
  return files.filter((file) => names.includes(file.name));
}

async function checkFiles(name: string, files: File[]): Promise<void> {
  const wanted = wantedFiles(name, files);
  refuseTooLarge(name, wanted.map((file) => file.size));
  for (const file of wanted) {
    if (wanted.length === 1) await checkGguf(file);
    else if (/\.safetensors$/.test(file.name)) await checkSafetensors(file);
    else if (/\.json$/.test(file.name)) await checkJson(file);
  }
  const has = (file: string) => wanted.some((one) => one.name === file);
  if (has("config.json") && !has("tokenizer.json") && !has("vocab.json")) throw new Error(`${name} has no tokenizer.json`);
}

async function head(file: File, length: number): Promise<Uint8Array> {
  return new Uint8Array(await file.slice(0, length).arrayBuffer());
}

async function checkGguf(file: File): Promise<void> {
  const magic = new TextDecoder().decode(await head(file, 4));
  if (magic !== "GGUF") throw new Error(`${file.name} does not begin as a GGUF file does; other models are config.json, tokenizer.json and safetensors together`);
}

/** The file begins with the length of its table of contents. */
async function checkSafetensors(file: File): Promise<void> {
  const start = await head(file, 8);
  const length = start.length === 8 ? Number(new DataView(start.buffer).getBigUint64(0, true)) : Infinity;
  if (8 + length > file.size) throw new Error(`${file.name} does not begin as a safetensors file does`);
}

async function checkJson(file: File): Promise<void> {
  try {
    JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON`);
  }
}
