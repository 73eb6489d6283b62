// The field for a region: a mask image, whose white part alone is learned from and judged.

import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { percent } from './format';
import { fileKind, headBytes } from './kinds';
import { capital, Icon } from './ui';

/** A mask as the service reads it, made smaller. */
interface Mask {
  /** White inside of the region, black outside. */
  pixels: ImageData;
  /** The share of the image that is inside. */
  share: number;
  transparent: boolean;
}

/** A chosen file for the mask. */
export interface Region {
  file: File;
  /** undefined for a file that this browser cannot show. */
  mask?: Mask;
  /** Why the file is not sent. */
  fault?: string;
}

/** The longest side of a mask in the page, in pixels. */
const longest = 512;

/** Looks at a file for the mask. */
export async function readRegion(file: File): Promise<Region> {
  let head: Uint8Array;
  try {
    head = new Uint8Array(await file.slice(0, headBytes).arrayBuffer());
  } catch {
    return { file, fault: 'The file cannot be read: check that it is still there.' };
  }
  const kind = fileKind(file.name, head);
  if (kind.use !== 'image') {
    return { file, fault: kind.use === 'skipped' ? `${capital(kind.reason)}.` : 'The file is not an image: choose a PNG, JPEG or TIFF.' };
  }
  const mask = await readMask(file);
  return mask?.share === 0 ? { file, mask, fault: 'The mask is black everywhere: paint the part to judge white.' } : { file, mask };
}

/** The mask in an image by the rule of the service: what is brighter than half of the brightest is inside. */
async function readMask(file: File): Promise<Mask | undefined> {
  try {
    const full = await createImageBitmap(file);
    const scale = Math.min(1, longest / Math.max(full.width, full.height));
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(full.width * scale));
    canvas.height = Math.max(1, Math.round(full.height * scale));
    const context = canvas.getContext('2d')!;
    context.imageSmoothingEnabled = false;
    context.drawImage(full, 0, 0, canvas.width, canvas.height);
    full.close();
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const v = pixels.data;
    let brightest = 0;
    let transparent = false;
    for (let i = 0; i < v.length; i += 4) {
      brightest = Math.max(brightest, v[i]! + v[i + 1]! + v[i + 2]!);
      transparent ||= v[i + 3]! < 255;
    }
    let inside = 0;
    for (let i = 0; i < v.length; i += 4) {
      const white = 2 * (v[i]! + v[i + 1]! + v[i + 2]!) > brightest;
      if (white) inside++;
      v.fill(white ? 255 : 0, i, i + 3);
      v[i + 3] = 255;
    }
    return { pixels, share: (4 * inside) / v.length, transparent };
  } catch {
    return undefined;
  }
}

export function RegionField({ region, onChange }: { region: Region | undefined; onChange: (r: Region | undefined) => void }) {
  const input = useRef<HTMLInputElement>(null);
  const latest = useRef<File | undefined>(undefined);
  const [looking, setLooking] = useState(false);
  const id = useId();
  const take = async (file: File | undefined) => {
    latest.current = file;
    onChange(file && { file });
    setLooking(file !== undefined);
    if (!file) return;
    const r = await readRegion(file);
    if (latest.current !== file) return; // another one was chosen meanwhile, or none
    onChange(r);
    setLooking(false);
  };
  return (
    <div class="field">
      <label class="field">
        <span>Part to judge (optional)</span>
        <input
          ref={input}
          type="file"
          data-region=""
          accept="image/*,.tif,.tiff,.dcm"
          aria-invalid={region?.fault !== undefined}
          aria-describedby={region ? `${id}-hint ${id}-mask` : `${id}-hint`}
          onChange={(e) => void take(e.currentTarget.files?.[0])}
        />
      </label>
      <small id={`${id}-hint`} class="hint">
        A mask of the same view: only what is white in it is learned from and judged.
      </small>
      {region && (
        <div class="mask">
          {region.mask && <MaskPicture mask={region.mask} />}
          <small id={`${id}-mask`} class={region.fault ? 'hint bad' : 'hint'} role="status">
            {looking ? 'Looking at the mask…' : (region.fault ?? about(region.mask))}
          </small>
          <button
            type="button"
            class="small"
            onClick={() => {
              if (input.current) input.current.value = '';
              void take(undefined);
              input.current?.focus();
            }}
          >
            <Icon name="trash" /> Remove the mask
          </button>
        </div>
      )}
    </div>
  );
}

function about(mask: Mask | undefined): string {
  if (!mask) return 'This browser cannot show the mask. The service reads it.';
  if (mask.transparent) return 'The service ignores transparency: it takes the colour under it. Save the mask in black and white.';
  return `About ${percent(mask.share)} of each image is judged.`;
}

function MaskPicture({ mask }: { mask: Mask }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    if (!canvas.current) return;
    canvas.current.width = mask.pixels.width;
    canvas.current.height = mask.pixels.height;
    canvas.current.getContext('2d')?.putImageData(mask.pixels, 0, 0);
  }, [mask]);
  return <canvas ref={canvas} role="img" aria-label="The mask: what is white is judged" />;
}
