// Model files in the browser's own storage (OPFS), found again by their SHA-256, so that they are fetched once.
// Every failure of the storage means "not cached": a private window or a full disk only makes loading slower.

import type { ModelEntry } from "./protocol";

export type Progress = (phase: "fetch" | "cache" | "hash", done: number, total: number) => void;

export interface StoredModel {
  bytes: Uint8Array<ArrayBuffer>;
  sha256: string;
  fromCache: boolean;
}

async function folder(): Promise<FileSystemDirectoryHandle | null> {
  try {
    return await (await navigator.storage.getDirectory()).getDirectoryHandle("firebrick-models", { create: true });
  } catch {
    return null;
  }
}

export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function readCached(entry: ModelEntry, progress: Progress): Promise<Uint8Array<ArrayBuffer> | null> {
  try {
    const handle = await (await folder())?.getFileHandle(entry.sha256);
    const file = await handle?.getFile();
    if (!file || file.size !== entry.bytes) return null;
    progress("cache", 0, file.size);
    return new Uint8Array(await file.arrayBuffer());
  } catch {
    return null;
  }
}

async function writeCached(entry: ModelEntry, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  let access: FileSystemSyncAccessHandle | undefined;
  try {
    const handle = await (await folder())?.getFileHandle(entry.sha256, { create: true });
    // Fails while another tab writes the same file, which then need not be written again.
    access = await handle?.createSyncAccessHandle();
    access?.truncate(0);
    access?.write(bytes, { at: 0 });
    access?.flush();
  } catch {
    // Not cached, then.
  } finally {
    access?.close();
  }
}

async function removeCached(entry: ModelEntry): Promise<void> {
  try {
    await (await folder())?.removeEntry(entry.sha256);
  } catch {
    // It was not there.
  }
}

async function download(entry: ModelEntry, base: string, progress: Progress): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(new URL(entry.file, base));
  if (!response.ok || !response.body) {
    throw new Error(`the server answers ${response.status} for ${entry.file}`);
  }
  const bytes = new Uint8Array(entry.bytes);
  let done = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (done + part.value.length > bytes.length) throw new Error(`${entry.file} is longer than ${entry.bytes} bytes`);
    bytes.set(part.value, done);
    done += part.value.length;
    progress("fetch", done, entry.bytes);
  }
  if (done < bytes.length) throw new Error(`${entry.file} ended after ${done} of ${entry.bytes} bytes`);
  return bytes;
}

/** The model's bytes, from the browser's storage or from the server, with the hash that the list of models promises. */
export async function openModel(entry: ModelEntry, base: string, progress: Progress): Promise<StoredModel> {
  const cached = await readCached(entry, progress);
  const bytes = cached ?? (await download(entry, base, progress));
  progress("hash", 0, bytes.length);
  const found = await sha256(bytes);
  if (found === entry.sha256) {
    if (!cached) await writeCached(entry, bytes);
    return { bytes, sha256: found, fromCache: cached !== null };
  }
  if (!cached) throw new Error(`${entry.file} has SHA-256 ${found}, expected ${entry.sha256}: the file is damaged`);
  // What was stored has gone bad: fetch it anew.
  await removeCached(entry);
  return openModel(entry, base, progress);
}

/** A file that the user dropped: nothing to compare its hash with. */
export async function readFile(file: File, progress: Progress): Promise<StoredModel> {
  progress("cache", 0, file.size);
  const bytes = new Uint8Array(await file.arrayBuffer());
  progress("hash", 0, bytes.length);
  return { bytes, sha256: await sha256(bytes), fromCache: false };
}
