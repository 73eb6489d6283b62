// The files that a person drops or chooses, and what the service will do with each.

import { fileKind, headBytes, type Kind } from './kinds';
import { listZip, readEntry, type PathFile } from './zip';

export type PathFileList = PathFile[];

/** All files of a drop, with the folders that they are in. */
export async function collectDrop(data: DataTransfer): Promise<PathFileList> {
  // The entries must be taken before the first wait: the list is emptied then.
  const entries = [...data.items].filter((i) => i.kind === 'file').map((i) => ({ entry: i.webkitGetAsEntry(), file: i.getAsFile() }));
  const list: PathFileList = [];
  for (const { entry, file } of entries) {
    if (entry) await walk(entry, list);
    else if (file) list.push({ path: file.name, file });
  }
  return list;
}

async function walk(entry: FileSystemEntry, list: PathFileList): Promise<void> {
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    list.push({ path: entry.fullPath.replace(/^\//, ''), file });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    // A reader returns at most a hundred entries at a time.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return;
    for (const e of some) await walk(e, list);
  }
}

export interface PreviewItem {
  path: string;
  size: number;
  kind: Kind;
  /** The image for a thumbnail. */
  open: () => Promise<Blob | undefined>;
}

export interface Preview {
  items: PreviewItem[];
  /** The zip that was dropped, or the files to pack. */
  zip?: File;
  files: PathFileList;
  bytes: number;
  /** Entries of the zip that were not looked at. */
  unread: number;
}

const mostEntries = 5000;

/** Looks at the first bytes of each file, or at each entry of a single zip. */
export async function preview(files: PathFileList, onProgress: (n: number) => void): Promise<Preview> {
  const only = files.length === 1 ? files[0]! : undefined;
  if (only && (await isZip(only.file))) return previewZip(only.file, onProgress);
  const items: PreviewItem[] = [];
  const send: PathFileList = [];
  for (const f of files) {
    let kind: Kind;
    try {
      kind = fileKind(f.path, new Uint8Array(await f.file.slice(0, headBytes).arrayBuffer()));
    } catch {
      kind = { use: 'skipped', reason: 'it cannot be read: check that the file is still there', never: true };
    }
    items.push({ path: f.path, size: f.file.size, kind, open: () => Promise.resolve(f.file) });
    // The service decides about files of a format that it does not read.
    if (kind.use !== 'ignored' && !(kind.use === 'skipped' && kind.never)) send.push(f);
    onProgress(items.length);
  }
  return { items, files: send, bytes: send.reduce((sum, f) => sum + f.file.size, 0), unread: 0 };
}

async function isZip(file: File): Promise<boolean> {
  const head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  return head[0] === 0x50 && head[1] === 0x4b && (head[2] === 3 || head[2] === 5);
}

async function previewZip(zip: File, onProgress: (n: number) => void): Promise<Preview> {
  const { entries, total } = await listZip(zip, mostEntries);
  const items: PreviewItem[] = [];
  for (const e of entries) {
    const head = await readEntry(zip, e);
    const kind: Kind = head === undefined ? { use: 'image' } : fileKind(e.path, head);
    items.push({
      path: e.path,
      size: e.size,
      kind,
      open: async () => {
        const all = e.size < 64 << 20 ? await readEntry(zip, e, e.size) : undefined;
        return all && new Blob([all]);
      },
    });
    onProgress(items.length);
  }
  return { items, zip, files: [], bytes: zip.size, unread: entries.length === 0 || entries.length === mostEntries ? total - entries.length : 0 };
}

/** A note on a data set in the layout of an evaluation, of which only a part is used. */
export function layoutNote(items: PreviewItem[]): string | undefined {
  const paths = items.filter((i) => i.kind.use === 'image').map((i) => i.path);
  const has = (name: RegExp) => paths.some((p) => p.split('/').slice(0, -1).some((part) => name.test(part)));
  if (has(/^train(ing)?$/i) && (has(/^test(s|ing|_.*)?$/i) || has(/^ground[ _-]?truth$/i))) {
    return 'This is a data set with train and test folders: only the normal images in train are used.';
  }
  return undefined;
}

export interface Thumbnail {
  url: string;
  /** The size of the image itself, upright. */
  width: number;
  height: number;
}

/** A small picture of an image, or undefined if the browser cannot show it. */
export async function thumbnail(image: Blob, side: number): Promise<Thumbnail | undefined> {
  try {
    const full = await createImageBitmap(image);
    const scale = Math.min(1, side / Math.min(full.width, full.height));
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(full.width * scale));
    canvas.height = Math.max(1, Math.round(full.height * scale));
    canvas.getContext('2d')?.drawImage(full, 0, 0, canvas.width, canvas.height);
    const { width, height } = full;
    full.close();
    const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, 'image/jpeg', 0.8));
    return blob ? { url: URL.createObjectURL(blob), width, height } : undefined;
  } catch {
    return undefined;
  }
}

/** Offers content as a file. */
export function download(content: Blob, name: string): void {
  const url = URL.createObjectURL(content);
  const a = document.createElement('a');
  a.href = url;
  a.download = name;
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
