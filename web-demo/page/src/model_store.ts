// A model's files: from the browser's own storage (OPFS), where they are found again by their hashes, from the server of
// the page, from the hub, or from the user's disk. Every failure of the storage means "not cached": a private window or a
// full disk only makes loading slower.

import { listModel } from "./hub";
import { refuseTooLarge, wantedFiles } from "./model_check";
import type { ModelSource } from "./protocol";

export type Progress = (phase: "fetch" | "cache" | "hash", done: number, total: number) => void;

/** A hash as its source promises it: of the bytes, or Git's, which puts a header in front. */
export interface Hash {
  kind: "sha256" | "git";
  hex: string;
}

export interface FileEntry {
  name: string;
  url: string;
  bytes: number;
  hash: Hash;
}

export interface ModelFile {
  name: string;
  bytes: Uint8Array<ArrayBuffer>;
}

export interface StoredModel {
  name: string;
  files: ModelFile[];
  /** Of the largest file. */
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

async function digest(algorithm: "SHA-256" | "SHA-1", bytes: BufferSource): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest(algorithm, bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const sha256 = (bytes: Uint8Array<ArrayBuffer>): Promise<string> => digest("SHA-256", bytes);

async function hash(kind: Hash["kind"], bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return kind === "sha256" ? sha256(bytes) : digest("SHA-1", await new Blob([`blob ${bytes.length}\0`, bytes]).arrayBuffer());
}

const cacheName = ({ kind, hex }: Hash): string => (kind === "sha256" ? hex : `${kind}-${hex}`);

async function readCached(entry: FileEntry): Promise<Uint8Array<ArrayBuffer> | null> {
  try {
    const handle = await (await folder())?.getFileHandle(cacheName(entry.hash));
    const file = await handle?.getFile();
    return file && file.size === entry.bytes ? new Uint8Array(await file.arrayBuffer()) : null;
  } catch {
    return null;
  }
}

async function writeCached(entry: FileEntry, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  let access: FileSystemSyncAccessHandle | undefined;
  try {
    const handle = await (await folder())?.getFileHandle(cacheName(entry.hash), { create: true });
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

async function removeCached(entry: FileEntry): Promise<void> {
  try {
    await (await folder())?.removeEntry(cacheName(entry.hash));
  } catch {
    // It was not there.
  }
}

async function download(entry: FileEntry, progress: (done: number) => void): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(entry.url).catch(() => null);
  if (!response) throw new Error(`${entry.name} cannot be fetched from ${new URL(entry.url).host}: it does not answer, or does not let this page ask it`);
  if (!response.ok || !response.body) throw new Error(`the server answers ${response.status} for ${entry.name}`);
  const bytes = new Uint8Array(entry.bytes);
  let done = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (done + part.value.length > bytes.length) throw new Error(`${entry.name} is longer than ${entry.bytes} bytes`);
    bytes.set(part.value, done);
    done += part.value.length;
    progress(done);
  }
  if (done < bytes.length) throw new Error(`${entry.name} ended after ${done} of ${entry.bytes} bytes`);
  return bytes;
}

/** A file's bytes, from the browser's storage or from where it lies, with the hash that was promised. */
async function openFile(entry: FileEntry, progress: (phase: "fetch" | "hash", done: number) => void): Promise<{ bytes: Uint8Array<ArrayBuffer>; fromCache: boolean }> {
  const cached = await readCached(entry);
  const bytes = cached ?? (await download(entry, (done) => progress("fetch", done)));
  progress("hash", bytes.length);
  const found = await hash(entry.hash.kind, bytes);
  if (found === entry.hash.hex) {
    if (!cached) await writeCached(entry, bytes);
    return { bytes, fromCache: cached !== null };
  }
  if (!cached) throw new Error(`${entry.name} has the hash ${found}, expected ${entry.hash.hex}: the file is damaged, or has changed`);
  // What was stored has gone bad: fetch it anew.
  await removeCached(entry);
  return openFile(entry, progress);
}

async function openEntries(name: string, entries: FileEntry[], progress: Progress): Promise<StoredModel> {
  const total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  refuseTooLarge(name, [total]);
  progress("cache", 0, total);
  const files: ModelFile[] = [];
  let before = 0;
  let fromCache = true;
  for (const entry of entries) {
    const opened = await openFile(entry, (phase, done) => progress(phase, before + done, total));
    files.push({ name: entry.name, bytes: opened.bytes });
    fromCache &&= opened.fromCache;
    before += entry.bytes;
  }
  const largest = entries.reduce((one, other) => (other.bytes > one.bytes ? other : one));
  const sha256 = largest.hash.kind === "sha256" ? largest.hash.hex : await largestHash(files);
  return { name, files, sha256, fromCache };
}

async function largestHash(files: ModelFile[]): Promise<string> {
  const largest = files.reduce((one, other) => (other.bytes.length > one.bytes.length ? other : one));
  return sha256(largest.bytes);
}

/** Files of the user's disk: there is nothing to compare their hashes with. */
async function readFiles(name: string, files: File[], progress: Progress): Promise<StoredModel> {
  const wanted = wantedFiles(name, files);
  const total = wanted.reduce((sum, file) => sum + file.size, 0);
  refuseTooLarge(name, [total]);
  progress("cache", 0, total);
  const read = await Promise.all(wanted.map(async (file) => ({ name: file.name, bytes: new Uint8Array(await file.arrayBuffer()) })));
  progress("hash", total, total);
  return { name, files: read, sha256: await largestHash(read), fromCache: false };
}

/** The files of a model, wherever they are; `base` is where the page lies. */
export async function openModel(source: ModelSource, base: string, progress: Progress): Promise<StoredModel> {
  switch (source.kind) {
    case "listed": {
      const { name, file, bytes, sha256 } = source.entry;
      return openEntries(name, [{ name, url: new URL(file, base).href, bytes, hash: { kind: "sha256", hex: sha256 } }], progress);
    }
    case "hub":
      progress("fetch", 0, 0);
      return openEntries(source.id, await listModel(source.id, source.endpoint), progress);
    case "files":
      return readFiles(source.name, source.files, progress);
  }
}
