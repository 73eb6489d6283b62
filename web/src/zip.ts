// Zips in the browser: written without compression from files that stay on the disk, and
// listed for a preview.

import { headBytes } from './kinds';

export interface PathFile {
  path: string;
  file: File;
}

const crcTable = (() => {
  const t = new Uint32Array(256 * 4);
  for (let n = 0; n < 256; n++) {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    t[n] = c >>> 0;
  }
  for (let n = 0; n < 256; n++) {
    for (let k = 1; k < 4; k++) {
      const c = t[(k - 1) * 256 + n]!;
      t[k * 256 + n] = (c >>> 8) ^ t[c & 255]!;
    }
  }
  return t;
})();

/** Continues a CRC-32 over bytes, four at a time. Begin with 0. */
export function crc32(crc: number, bytes: Uint8Array): number {
  const t = crcTable;
  let c = ~crc;
  let i = 0;
  for (const end = bytes.length - 3; i < end; i += 4) {
    c ^= bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24);
    c = t[768 + (c & 255)]! ^ t[512 + ((c >>> 8) & 255)]! ^ t[256 + ((c >>> 16) & 255)]! ^ t[c >>> 24]!;
  }
  for (; i < bytes.length; i++) c = t[(c ^ bytes[i]!) & 255]! ^ (c >>> 8);
  return ~c >>> 0;
}

const localHeader = 0x04034b50;
const directoryHeader = 0x02014b50;
const endOfDirectory = 0x06054b50;
const utf8Names = 0x800;
const maxBytes = 0xffffffff - 1;
const maxFiles = 0xffff - 1;

function header(size: number, fill: (v: DataView) => void): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  fill(new DataView(bytes.buffer));
  return bytes;
}

/**
 * Returns a zip of the files. Each file is read once, for its checksum, a piece at a time;
 * the zip refers to the files on the disk, so that it takes no memory for them.
 */
export async function zipFiles(files: PathFile[], onProgress: (share: number) => void, signal?: AbortSignal): Promise<Blob> {
  const total = files.reduce((sum, f) => sum + f.file.size, 0);
  if (total > maxBytes - 200 * files.length || files.length > maxFiles) {
    throw new Error('These are too many files for the browser to pack: more than 4 GB or 65,000 files. Pack them into a zip yourself and drop that, or choose fewer.');
  }
  const parts: BlobPart[] = [];
  const directory: Uint8Array<ArrayBuffer>[] = [];
  const names = new Set<string>();
  let offset = 0;
  let read = 0;
  for (const { path, file } of files) {
    let name = path;
    for (let n = 2; names.has(name); n++) name = `${n}/${path}`;
    names.add(name);
    let crc = 0;
    try {
      const reader = file.stream().getReader();
      for (;;) {
        signal?.throwIfAborted();
        const { value, done } = await reader.read();
        if (done) break;
        crc = crc32(crc, value);
        read += value.length;
        onProgress(total === 0 ? 1 : read / total);
      }
    } catch (e) {
      if (signal?.aborted) throw e;
      throw new Error(`The file ${path} cannot be read any more. Choose the images again.`);
    }
    const encoded = new TextEncoder().encode(name);
    const common = (v: DataView, at: number) => {
      v.setUint16(at, 20, true); // version needed
      v.setUint16(at + 2, utf8Names, true);
      v.setUint16(at + 4, 0, true); // stored
      v.setUint16(at + 6, 0, true); // time
      v.setUint16(at + 8, 0x21, true); // 1980-01-01: no time of the files leaves the device
      v.setUint32(at + 10, crc, true);
      v.setUint32(at + 14, file.size, true);
      v.setUint32(at + 18, file.size, true);
      v.setUint16(at + 22, encoded.length, true);
    };
    const local = header(30 + encoded.length, (v) => {
      v.setUint32(0, localHeader, true);
      common(v, 4);
    });
    local.set(encoded, 30);
    const entry = header(46 + encoded.length, (v) => {
      v.setUint32(0, directoryHeader, true);
      v.setUint16(4, 20, true);
      common(v, 6);
      v.setUint32(42, offset, true);
    });
    entry.set(encoded, 46);
    parts.push(local, file);
    directory.push(entry);
    offset += local.length + file.size;
  }
  const size = directory.reduce((sum, e) => sum + e.length, 0);
  const end = header(22, (v) => {
    v.setUint32(0, endOfDirectory, true);
    v.setUint16(8, files.length, true);
    v.setUint16(10, files.length, true);
    v.setUint32(12, size, true);
    v.setUint32(16, offset, true);
  });
  return new Blob([...parts, ...directory, end], { type: 'application/zip' });
}

export interface ZipEntry {
  path: string;
  method: number;
  packed: number;
  size: number;
  offset: number;
}

/** The entries of a zip, from its directory. Throws for a file that is not a plain zip. */
export async function listZip(zip: Blob, most: number): Promise<{ entries: ZipEntry[]; total: number }> {
  const tailStart = Math.max(0, zip.size - 66000);
  const tail = new DataView(await zip.slice(tailStart).arrayBuffer());
  let end = -1;
  for (let at = tail.byteLength - 22; at >= 0 && end < 0; at--) if (tail.getUint32(at, true) === endOfDirectory) end = at;
  if (end < 0) throw new Error('This file is not a complete zip. Pack the images again.');
  const total = tail.getUint16(end + 10, true);
  const size = tail.getUint32(end + 12, true);
  const start = tail.getUint32(end + 16, true);
  if (start === 0xffffffff || size > 64 << 20) return { entries: [], total };
  const view = new DataView(await zip.slice(start, start + size).arrayBuffer());
  const entries: ZipEntry[] = [];
  for (let at = 0; at + 46 <= view.byteLength && entries.length < most; ) {
    if (view.getUint32(at, true) !== directoryHeader) break;
    const length = view.getUint16(at + 28, true);
    const path = new TextDecoder().decode(new Uint8Array(view.buffer, at + 46, Math.min(length, view.byteLength - at - 46)));
    if (!path.endsWith('/')) {
      entries.push({ path, method: view.getUint16(at + 10, true), packed: view.getUint32(at + 20, true), size: view.getUint32(at + 24, true), offset: view.getUint32(at + 42, true) });
    }
    at += 46 + length + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return { entries, total };
}

/** The bytes of an entry as a stream, unpacked; undefined for a method that browsers do not know. */
async function openEntry(zip: Blob, e: ZipEntry): Promise<ReadableStream<Uint8Array<ArrayBuffer>> | undefined> {
  const local = new DataView(await zip.slice(e.offset, e.offset + 30).arrayBuffer());
  if (local.byteLength < 30) return undefined;
  const start = e.offset + 30 + local.getUint16(26, true) + local.getUint16(28, true);
  const packed = zip.slice(start, start + e.packed).stream() as ReadableStream<Uint8Array<ArrayBuffer>>;
  if (e.method === 0) return packed;
  if (e.method === 8) return packed.pipeThrough(new DecompressionStream('deflate-raw')) as ReadableStream<Uint8Array<ArrayBuffer>>;
  return undefined;
}

/** The first bytes of an entry; more if most is larger. Undefined if they cannot be read here. */
export async function readEntry(zip: Blob, e: ZipEntry, most = headBytes): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const stream = await openEntry(zip, e);
  if (stream === undefined) return undefined;
  const reader = stream.getReader();
  const bytes = new Uint8Array(Math.min(most, e.size));
  let n = 0;
  try {
    while (n < bytes.length) {
      const { value, done } = await reader.read();
      if (done) break;
      bytes.set(value.subarray(0, bytes.length - n), n);
      n += Math.min(value.length, bytes.length - n);
    }
  } catch {
    return undefined;
  }
  void reader.cancel().catch(() => undefined);
  return bytes.subarray(0, n) as Uint8Array<ArrayBuffer>;
}
