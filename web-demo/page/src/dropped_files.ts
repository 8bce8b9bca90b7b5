// Files that were dropped on the page, those in a dropped folder included.

/** Files that belong together, and what to call them. */
export interface FileGroup {
  name: string;
  files: File[];
}

/** All files of a drop; hidden ones and deeper folders are left out. */
export async function droppedFiles(transfer: DataTransfer): Promise<FileGroup> {
  // Entries must be asked for before anything is awaited: the browser forgets them with the event.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  const plain = [...transfer.files];
  const folder = entries.find((entry) => entry?.isDirectory);
  if (!folder) return group(plain);
  const reader = (folder as FileSystemDirectoryEntry).createReader();
  const found: FileSystemFileEntry[] = [];
  // A reader gives a hundred entries at a time, and none at the end.
  for (let some = await read(reader); some.length > 0; some = await read(reader)) {
    found.push(...some.filter((entry): entry is FileSystemFileEntry => entry.isFile && !entry.name.startsWith(".")));
  }
  const files = await Promise.all(found.map((entry) => new Promise<File>((resolve, reject) => entry.file(resolve, reject))));
  return { name: folder.name, files };
}

function read(reader: FileSystemDirectoryReader): Promise<FileSystemEntry[]> {
  return new Promise((resolve, reject) => reader.readEntries(resolve, reject));
}

/** Files that were chosen or dropped without a folder around them. */
export function group(files: File[]): FileGroup {
  const [first] = files;
  return { name: files.length === 1 && first ? first.name : "the chosen files", files };
}
