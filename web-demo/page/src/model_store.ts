// A model's files: from the browser's own storage, from the server of the page, from the hub, or from the user's disk.

import { listModel } from "./hub";
import { refuseTooLarge, wantedFiles } from "./model_check";
import type { ModelSource } from "./protocol";
import { readStored, removeStored, writeStored } from "./stored_files";

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

export interface OpenedModel {
  name: string;
  files: ModelFile[];
  /** Of the largest file; `null` where the browser computes no hashes, and nothing was checked. */
  sha256: string | null;
  fromCache: boolean;
}

/** Browsers compute hashes for secure pages only. */
async function digest(algorithm: "SHA-256" | "SHA-1", bytes: BufferSource): Promise<string | null> {
  if (!isSecureContext) return null;
  const digest = new Uint8Array(await crypto.subtle.digest(algorithm, bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function hash(kind: Hash["kind"], bytes: Uint8Array<ArrayBuffer>): Promise<string | null> {
  return kind === "sha256" ? digest("SHA-256", bytes) : digest("SHA-1", await new Blob([`blob ${bytes.length}\0`, bytes]).arrayBuffer());
}

const storedName = ({ kind, hex }: Hash): string => (kind === "sha256" ? hex : `${kind}-${hex}`);

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

type FileProgress = (phase: "fetch" | "hash", done: number) => void;

/** A stored file's bytes. What has gone bad is removed, if that can be done, and is as good as not stored. */
async function openStored(entry: FileEntry, progress: FileProgress): Promise<Uint8Array<ArrayBuffer> | null> {
  const name = storedName(entry.hash);
  const bytes = await readStored(name, entry.bytes);
  if (!bytes) return null;
  progress("hash", bytes.length);
  if ((await hash(entry.hash.kind, bytes)) === entry.hash.hex) return bytes;
  await removeStored(name);
  return null;
}

/** A file's bytes, from the browser's storage or from where it lies, with the hash that was promised. */
async function openFile(title: string, entry: FileEntry, progress: FileProgress): Promise<{ bytes: Uint8Array<ArrayBuffer>; fromCache: boolean }> {
  const stored = await openStored(entry, progress);
  if (stored) return { bytes: stored, fromCache: true };
  const bytes = await download(entry, (done) => progress("fetch", done));
  progress("hash", bytes.length);
  const found = await hash(entry.hash.kind, bytes);
  if (found !== null && found !== entry.hash.hex) {
    throw new Error(`${entry.name} has the hash ${found}, expected ${entry.hash.hex}: the file is damaged, or has changed`);
  }
  await writeStored(storedName(entry.hash), title, bytes);
  return { bytes, fromCache: false };
}

async function openEntries(name: string, entries: FileEntry[], progress: Progress): Promise<OpenedModel> {
  const total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  refuseTooLarge(name, [total]);
  progress("cache", 0, total);
  const files: ModelFile[] = [];
  let before = 0;
  let fromCache = true;
  for (const entry of entries) {
    const opened = await openFile(name, entry, (phase, done) => progress(phase, before + done, total));
    files.push({ name: entry.name, bytes: opened.bytes });
    fromCache &&= opened.fromCache;
    before += entry.bytes;
  }
  return { name, files, sha256: await largestHash(files, entries), fromCache };
}

/** The SHA-256 of the largest file; what has been compared with a promised one is not computed again. */
async function largestHash(files: ModelFile[], compared: FileEntry[] = []): Promise<string | null> {
  if (!isSecureContext) return null;
  const largest = files.reduce((one, other) => (other.bytes.length > one.bytes.length ? other : one));
  const promised = compared.find((entry) => entry.name === largest.name)?.hash;
  return promised?.kind === "sha256" ? promised.hex : digest("SHA-256", largest.bytes);
}

/** Files of the user's disk: there is nothing to compare their hashes with. */
async function readFiles(name: string, files: File[], progress: Progress): Promise<OpenedModel> {
  const wanted = wantedFiles(name, files);
  const total = wanted.reduce((sum, file) => sum + file.size, 0);
  refuseTooLarge(name, [total]);
  progress("cache", 0, total);
  const read = await Promise.all(wanted.map(async (file) => ({ name: file.name, bytes: new Uint8Array(await file.arrayBuffer()) })));
  progress("hash", total, total);
  return { name, files: read, sha256: await largestHash(read), fromCache: false };
}

/** The files of a model, wherever they are; `base` is where the page lies. */
export async function openModel(source: ModelSource, base: string, progress: Progress): Promise<OpenedModel> {
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
