// The browser's own storage for the files of models (OPFS), where each is found again by its hash. Every failure means "not
// stored": a private window, a full disk or an insecure page only makes loading slower. Beside each file lies the title of
// its model, for the list of what is stored.

const FOLDER = "firebrick-models";
const TITLE = ".title";

/** The stored files of one model. */
export interface StoredModel {
  title: string;
  names: string[];
  bytes: number;
}

async function folder(): Promise<FileSystemDirectoryHandle | null> {
  try {
    return await (await navigator.storage.getDirectory()).getDirectoryHandle(FOLDER, { create: true });
  } catch {
    return null;
  }
}

async function readFile(name: string): Promise<File | null> {
  try {
    const handle = await (await folder())?.getFileHandle(name);
    return (await handle?.getFile()) ?? null;
  } catch {
    return null;
  }
}

/** The bytes of a stored file of this length. */
export async function readStored(name: string, length: number): Promise<Uint8Array<ArrayBuffer> | null> {
  const file = await readFile(name);
  if (file?.size !== length) return null;
  return file.arrayBuffer().then((bytes) => new Uint8Array(bytes), () => null);
}

/** Stores a file, in a worker. What a full disk cuts off is removed. */
export async function writeStored(name: string, title: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  const isWritten = (await writeFile(name, bytes)) && (await writeFile(name + TITLE, new TextEncoder().encode(title)));
  if (!isWritten) await removeStored(name);
}

async function writeFile(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<boolean> {
  let access: FileSystemSyncAccessHandle | undefined;
  try {
    const handle = await (await folder())?.getFileHandle(name, { create: true });
    // Fails while another tab writes the same file.
    access = await handle?.createSyncAccessHandle();
    if (!access) return false;
    access.truncate(0);
    const written = access.write(bytes, { at: 0 });
    access.flush();
    return written === bytes.length;
  } catch {
    return false;
  } finally {
    access?.close();
  }
}

/** Removes a file if that can be done: not while another tab writes it. */
export async function removeStored(name: string): Promise<void> {
  const directory = await folder();
  await directory?.removeEntry(name).catch(() => undefined);
  await directory?.removeEntry(name + TITLE).catch(() => undefined);
}

/** The models that are stored, by title. */
export async function listStored(): Promise<StoredModel[]> {
  const models = new Map<string, StoredModel>();
  for (const name of await storedNames()) {
    const [file, label] = [await readFile(name), await readFile(name + TITLE)];
    if (!file) continue;
    const title = (await label?.text().catch(() => "")) || `${name.slice(0, 12)}…`;
    const model = models.get(title) ?? { title, names: [], bytes: 0 };
    models.set(title, { title, names: [...model.names, name], bytes: model.bytes + file.size });
  }
  return [...models.values()];
}

async function storedNames(): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const name of (await folder())?.keys() ?? []) {
      if (!name.endsWith(TITLE)) names.push(name);
    }
  } catch {
    // What was found so far.
  }
  return names;
}
