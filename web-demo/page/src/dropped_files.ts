// Files that were dropped on the page, those in a dropped folder included.

/** All files of a drop; hidden ones and deeper folders are left out. */
export async function droppedFiles(transfer: DataTransfer): Promise<File[]> {
  // Entries must be asked for before anything is awaited: the browser forgets them with the event.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  const plain = [...transfer.files];
  const folder = entries.find((entry) => entry?.isDirectory);
  if (!folder) return plain;
  const reader = (folder as FileSystemDirectoryEntry).createReader();
  const found: FileSystemFileEntry[] = [];
  // A reader gives a hundred entries at a time, and none at the end.
  for (let some = await read(reader); some.length > 0; some = await read(reader)) {
    found.push(...some.filter((entry): entry is FileSystemFileEntry => entry.isFile && !entry.name.startsWith(".")));
  }
  return Promise.all(found.map((entry) => new Promise<File>((resolve, reject) => entry.file(resolve, reject))));
}

function read(reader: FileSystemDirectoryReader): Promise<FileSystemEntry[]> {
  return new Promise((resolve, reject) => reader.readEntries(resolve, reject));
}

/** What to call a model of these files. */
export function nameOf(files: File[]): string {
  const [first] = files;
  if (files.length === 1 && first) return first.name;
  return first?.webkitRelativePath.split("/")[0] || "the chosen files";
}
