// What a file is, by its first bytes: the rule of the service (internal/imagefile and
// internal/dataset), for a preview before anything is sent. The service decides.

/** The number of bytes that fileKind needs. */
export const headBytes = 4096;

export type Kind =
  | { use: 'image' }
  | { use: 'classes' } // a YAML file
  | { use: 'ignored' } // silently, as the service does
  | { use: 'skipped'; reason: string; never?: boolean }; // never: not worth sending

const skipped = (reason: string, never = false): Kind => ({ use: 'skipped', reason, never });
const unread = (format: string): Kind => skipped(`${format} images are not read: export JPEG or PNG`);
const archive = skipped('it is an archive, which is not read: unpack it, or give it alone', true);
const video = skipped('it is a video, which is not read: extract its frames as JPEG or PNG', true);
const documentKind = skipped('it is a document, which is not read: export its pages as PNG');
const unknown = skipped('it is of an unknown kind, which is not read: if it is an image, export JPEG or PNG');
const ignored: Kind = { use: 'ignored' };
const image: Kind = { use: 'image' };

// offset, bytes ('?' for any), kind
const signatures: [number, string, Kind][] = [
  [0, '\x89PNG\r\n\x1a\n', image],
  [0, '\xff\xd8\xff\xf7', unread('JPEG-LS')],
  [0, '\xff\xd8\xff', image],
  [0, 'GIF87a', image],
  [0, 'GIF89a', image],
  [0, 'RIFF????WEBP', image],
  [0, 'RIFF????AVI ', video],
  [0, 'RIFF????WAVE', ignored],
  [0, '\x00\x00\x00\x0cJXL \r\n\x87\n', unread('JPEG XL')],
  [0, '\xff\x0a', unread('JPEG XL')],
  [0, '\x00\x00\x00\x0cjP  \r\n\x87\n', unread('JPEG 2000')],
  [0, '\xff\x4f\xff\x51', unread('JPEG 2000')],
  [0, 'II\xbc', unread('JPEG XR')],
  [128, 'DICM', image],
  [0, '8BPS', unread('Photoshop (PSD)')],
  [0, '%PDF-', documentKind],
  [0, '%!PS', documentKind],
  [0, 'AT&TFORM', documentKind],
  [0, '\x76\x2f\x31\x01', unread('OpenEXR')],
  [0, '#?RADIANCE', unread('Radiance HDR')],
  [0, 'FUJIFILMCCD-RAW', unread('camera raw')],
  [0, 'IIRO', unread('camera raw')],
  [0, 'IIRS', unread('camera raw')],
  [0, 'MMOR', unread('camera raw')],
  [0, 'IIU\x00', unread('camera raw')],
  [0, 'qoif', unread('QOI')],
  [0, 'gimp xcf', unread('GIMP')],
  [0, 'DDS ', unread('DDS')],
  [0, 'SIMPLE  =', unread('FITS')],
  [344, 'n+1\x00', unread('NIfTI')],
  [0, '\x93NUMPY', unread('NumPy array')],
  [0, 'PK\x03\x04', archive],
  [0, 'PK\x05\x06', archive],
  [0, '7z\xbc\xaf\x27\x1c', archive],
  [0, 'Rar!\x1a\x07', archive],
  [0, '\x1f\x8b', archive],
  [0, 'BZh', archive],
  [0, '\xfd7zXZ\x00', archive],
  [0, '\x28\xb5\x2f\xfd', archive],
  [257, 'ustar', archive],
  [0, '\x1a\x45\xdf\xa3', video],
  [0, '\x00\x00\x01\xba', video],
  [0, '\x00\x00\x01\xb3', video],
  [0, '\x00\x05\x16\x07', ignored],
  [0, '\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', ignored],
  [0, 'SQLite format 3\x00', ignored],
];

const imageExtensions = words('.png .apng .jpg .jpeg .jpe .jfif .jif .jfi .pjpeg .pjp .bmp .dib .tif .tiff .gif .webp .dcm .dicom');
const rawExtensions = words('.dng .nef .nrw .cr2 .cr3 .crw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .raw .3fr .iiq .erf .mef .mos .mrw .kdc .dcr .x3f .rwl');
const otherExtensions = words(`.txt .md .rst .log .json .jsonl .csv .tsv .xml .xmp .html .htm .css .js .ts .py .ipynb .ini .cfg .conf .toml .db .sqlite
  .doc .docx .xls .xlsx .ods .ppt .pptx .odt .rtf .lnk .url .aae .thm .sha1 .sha256 .md5 .pt .pth .onnx .ckpt .safetensors .pkl .exe .dll .mp3 .wav .svg .ico`);
const unreadExtensions: Record<string, string> = {
  '.heic': 'HEIC', '.heif': 'HEIC', '.avif': 'AVIF', '.jxl': 'JPEG XL', '.jp2': 'JPEG 2000', '.psd': 'Photoshop',
  '.exr': 'OpenEXR', '.tga': 'TGA', '.pcx': 'PCX', '.ppm': 'PNM', '.pgm': 'PNM', '.pbm': 'PNM', '.nii': 'NIfTI', '.npy': 'NumPy', '.npz': 'NumPy',
};

function words(text: string): Set<string> {
  return new Set(text.split(/\s+/));
}

function extension(path: string): string {
  const base = path.slice(path.lastIndexOf('/') + 1);
  const dot = base.lastIndexOf('.');
  return dot < 0 ? '' : base.slice(dot).toLowerCase();
}

/** Reports whether the service ignores a file by its path: hidden files and the folders of systems. */
export function hidden(path: string): boolean {
  return path.split('/').some((part) => part.startsWith('.') || part === '__MACOSX' || /^(thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|dicomdir)$/i.test(part));
}

function matches(head: Uint8Array, at: number, magic: string): boolean {
  if (head.length < at + magic.length) return false;
  for (let i = 0; i < magic.length; i++) {
    if (magic[i] !== '?' && magic.charCodeAt(i) !== head[at + i]) return false;
  }
  return true;
}

const latin = (head: Uint8Array, from: number, to: number): string => String.fromCharCode(...head.subarray(from, to));

/** The kind of a file in boxes (ISO base media), by its brands. */
function brandKind(head: Uint8Array): Kind {
  const brands = [latin(head, 8, 12)];
  for (let at = 16; at + 4 <= Math.min(head.length, 64); at += 4) brands.push(latin(head, at, at + 4));
  if (brands.some((b) => /^avi[fs]$/.test(b))) return unread('AVIF');
  if (brands.some((b) => /^(hei[cxms]|hev[cx]|mif[123]|msf1)$/.test(b))) return unread('HEIC');
  if (brands.includes('crx ')) return unread('camera raw');
  if (brands.includes('jp2 ')) return unread('JPEG 2000');
  return video;
}

function isText(head: Uint8Array): boolean {
  return !head.some((b) => b < 8 || b === 14 || b === 15);
}

/** The kind of a file by its path and its first headBytes bytes. */
export function fileKind(path: string, head: Uint8Array): Kind {
  const ext = extension(path);
  if (hidden(path)) return ignored;
  if (ext === '.yaml' || ext === '.yml') return { use: 'classes' };
  if (otherExtensions.has(ext)) return ignored;
  const content = contentKind(head);
  const raw = rawExtensions.has(ext);
  if (content?.use === 'image' && !(raw && (head[0] === 0x49 || head[0] === 0x4d))) return content;
  if (raw) return unread('camera raw');
  const named = unreadExtensions[ext];
  if (named !== undefined && (content === undefined || content === archive || content === ignored)) return unread(named);
  if (content !== undefined && content !== ignored) return content;
  if (imageExtensions.has(ext)) {
    return skipped(head.length === 0 ? 'the file is empty' : 'it has the ending of an image, but not the content of one: export it again as JPEG or PNG');
  }
  return content === ignored || isText(head) ? ignored : unknown;
}

const longLengths = /^(OB|OD|OF|OL|OV|OW|SQ|SV|UC|UN|UR|UT|UV)$/;

/** Reports whether a DICOM file begins without the preamble: with the file meta information, or with four elements of group 8. */
function isDICOMWithoutPreamble(head: Uint8Array): boolean {
  if (matches(head, 0, '\x02\x00\x00\x00UL\x04\x00')) return true;
  if (head.length < 8 || head[0] !== 8 || head[1] !== 0) return false;
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  const explicit = /^[A-Z]{2}$/.test(latin(head, 4, 6));
  let last = -1;
  for (let at = 0, n = 0; n < 4; n++) {
    if (at + 8 > head.length || view.getUint16(at, true) !== 8) return false;
    const element = view.getUint16(at + 2, true);
    const long = explicit && longLengths.test(latin(head, at + 4, at + 6));
    if (long && at + 12 > head.length) return false;
    const length = long ? view.getUint32(at + 8, true) : explicit ? view.getUint16(at + 6, true) : view.getUint32(at + 4, true);
    if (element <= last || length > 1024 || length % 2 !== 0) return false;
    last = element;
    at += (long ? 12 : 8) + length;
    if (at > head.length) return false;
  }
  return true;
}

/** The kind by the bytes alone, undefined if they are not recognized. */
function contentKind(head: Uint8Array): Kind | undefined {
  for (const [at, magic, kind] of signatures) if (matches(head, at, magic)) return kind;
  if (isDICOMWithoutPreamble(head)) return image;
  if (matches(head, 0, 'BM') && head.length >= 18) return image;
  if (matches(head, 0, 'II*\x00') || matches(head, 0, 'MM\x00*') || matches(head, 0, 'II+\x00') || matches(head, 0, 'MM\x00+')) {
    return latin(head, 8, 10) === 'CR' ? unread('camera raw') : image;
  }
  if (matches(head, 4, 'ftyp') && head.length >= 12) return brandKind(head);
  if (head[0] === 0x50 && /^P[1-7Ff][\s]/.test(latin(head, 0, 3))) return unread('PNM');
  return undefined;
}
