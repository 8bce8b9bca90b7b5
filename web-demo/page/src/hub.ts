// A model on the hub: which of a repository's files it needs, and the hashes that the hub promises for them.

import type { FileEntry } from "./model_store";

export const HUB = "https://huggingface.co";

/** One entry of the hub's listing. Large files have a SHA-256, small ones only Git's own hash. */
interface Listed {
  type: string;
  path: string;
  size: number;
  oid: string;
  lfs?: { oid: string; size: number };
}

const SMALL_FILES = [
  "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
  "chat_template.jinja", "chat_template.json",
];
const OLDER_TOKENIZER = ["vocab.json", "merges.txt"];
const SHARD = /^model-\d+-of-\d+\.safetensors$/;

/** `org/name` or `org/name/file.gguf`, either with `@revision` behind it, as on the command line. */
export function parseId(id: string): { repository: string; revision: string; file: string | null } {
  const found = /^(\w[\w.-]*\/\w[\w.-]*)(?:\/(\w[\w.-]*\.gguf))?(?:@(\w[\w.-]*))?$/i.exec(id.trim());
  if (!found?.[1]) throw new Error(`“${id}” is not the name of a model: it must look like org/name, org/name@revision or org/name/file.gguf`);
  return { repository: found[1], revision: found[3] ?? "main", file: found[2] ?? null };
}

/** The names of a model's files, out of all names in its folder. */
export function choose(id: string, names: string[], wanted: string | null): string[] {
  if (wanted) {
    if (!names.includes(wanted)) throw new Error(`${id}: there is no ${wanted}`);
    return [wanted];
  }
  const whole = names.filter((name) => name === "model.safetensors");
  const weights = whole.length > 0 ? whole : names.filter((name) => SHARD.test(name) || name === "model.safetensors.index.json");
  if (names.includes("config.json") && weights.length > 0) {
    const tokenizer = names.includes("tokenizer.json") ? [] : OLDER_TOKENIZER;
    return [...names.filter((name) => SMALL_FILES.includes(name) || tokenizer.includes(name)), ...weights];
  }
  const ggufs = names.filter((name) => /\.gguf$/i.test(name));
  if (ggufs.length === 1) return ggufs;
  if (ggufs.length > 1) throw new Error(`${id} has several GGUF files; name one of them behind it: ${ggufs.slice(0, 6).join(", ")}${ggufs.length > 6 ? ", …" : ""}`);
  throw new Error(`${id} has neither config.json with safetensors nor a GGUF file`);
}

/** The files of a model on the hub, with their sizes and hashes. */
export async function listModel(id: string, endpoint: string): Promise<FileEntry[]> {
  const { repository, revision, file } = parseId(id);
  const url = `${endpoint.replace(/\/$/, "")}/api/models/${repository}/tree/${revision}`;
  const response = await fetch(url).catch(() => null);
  if (!response) throw new Error(`${new URL(url).host} cannot be reached, or does not let this page ask it`);
  if (response.status === 401 || response.status === 403) {
    throw new Error(`${id} does not exist, or is not open to everybody: fetch its files yourself and open them here`);
  }
  if (!response.ok) throw new Error(`the hub answers ${response.status} for ${id}`);
  const listed = ((await response.json()) as Listed[]).filter((entry) => entry.type === "file");
  const names = choose(id, listed.map((entry) => entry.path), file);
  return listed.filter((entry) => names.includes(entry.path)).map((entry) => ({
    name: entry.path,
    url: `${endpoint.replace(/\/$/, "")}/${repository}/resolve/${revision}/${entry.path}`,
    bytes: entry.lfs?.size ?? entry.size,
    hash: entry.lfs ? { kind: "sha256", hex: entry.lfs.oid } : { kind: "git", hex: entry.oid },
  }));
}
