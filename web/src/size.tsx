// The field for the size that images are resized to: a square, or a width and a height.

import { useId } from 'preact/hooks';

/** The size of the network's input as a person enters it. */
export interface InputSize {
  /** The side of a square in pixels, or 0 for the width and height. */
  square: number;
  width: string;
  height: string;
}

export const usualSize: InputSize = { square: 256, width: '', height: '' };

const squares = [128, 256, 384, 512];

/** What the network's stride and the service allow for a side, in pixels: package trainer. */
const stride = 16;
const smallest = 16;
const largest = 1024;

/** What is wrong with a side, or undefined. */
function sideFault(text: string): string | undefined {
  const side = Number(text);
  if (text.trim() === '' || !Number.isInteger(side)) return `enter a multiple of ${stride} from ${smallest} to ${largest}.`;
  if (side < smallest || side > largest) return `${side} is not from ${smallest} to ${largest}.`;
  if (side % stride === 0) return undefined;
  const below = side - (side % stride);
  return `${side} is not a multiple of ${stride}: ${below} and ${below + stride} are.`;
}

/** The pixels of an input, or undefined for an unusable size. */
export function pixelsOf(s: InputSize): number | undefined {
  if (s.square > 0) return s.square ** 2;
  return sideFault(s.width) === undefined && sideFault(s.height) === undefined ? Number(s.width) * Number(s.height) : undefined;
}

/** The size as the service reads it. */
export function sizeText(s: InputSize): string {
  return s.square > 0 ? String(s.square) : `${Number(s.width)}x${Number(s.height)}`;
}

export function SizeField({ size, disabled, onChange }: { size: InputSize; disabled: boolean; onChange: (s: InputSize) => void }) {
  const id = useId();
  const choose = (square: number) => {
    // The sides begin as those of the square that was chosen.
    onChange(square > 0 ? { ...size, square } : { square, width: String(size.square), height: String(size.square) });
  };
  const faults = disabled || size.square > 0 ? {} : { width: sideFault(size.width), height: sideFault(size.height) };
  const side = (name: 'width' | 'height', title: string) => (
    <label class="field">
      <span>{title}</span>
      <input
        type="number"
        min={smallest}
        max={largest}
        step={stride}
        value={size[name]}
        disabled={disabled}
        aria-invalid={faults[name] !== undefined}
        aria-describedby={`${id}-hint`}
        onInput={(e) => onChange({ ...size, [name]: e.currentTarget.value })}
      />
    </label>
  );
  const fault = faults.width ? `Width: ${faults.width}` : faults.height ? `Height: ${faults.height}` : undefined;
  return (
    <div class="field">
      <label class="field">
        <span>Size of the images</span>
        <select value={size.square} disabled={disabled} aria-describedby={`${id}-hint`} onChange={(e) => choose(Number(e.currentTarget.value))}>
          {squares.map((s) => (
            <option key={s} value={s}>
              {s} × {s} pixels{s === 256 ? ' (usual)' : ''}
            </option>
          ))}
          <option value={0}>other</option>
        </select>
      </label>
      {size.square === 0 && (
        <div class="pair" role="group" aria-label="Size of the images in pixels">
          {side('width', 'Width')}
          {side('height', 'Height')}
        </div>
      )}
      <small id={`${id}-hint`} class={fault ? 'hint bad' : 'hint'}>
        {fault ?? (size.square > 0 ? 'Larger finds smaller defects, and takes longer.' : `Multiples of ${stride}, up to ${largest}. A size of the images’ own shape finds most.`)}
      </small>
    </div>
  );
}
