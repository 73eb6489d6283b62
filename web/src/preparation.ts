// How a model prepares images, as a person reads it.

import { percent } from './format';
import type { Metadata } from './types';

/** The width and height of the network's input, or the size of a tile. */
export function inputSize(m: Metadata): string {
  const { width, height } = m.preprocessing ?? {};
  return width && height ? `${width} × ${height}` : `${m.image_size} × ${m.image_size}`;
}

/** The size in a few words, for a list of models. */
export function shortSize(m: Metadata): string {
  const square = m.preprocessing?.width ? inputSize(m) : String(m.image_size);
  return `${m.preprocessing?.tiles ? 'tiles of ' : ''}${square} px`;
}

/** The share of the image that is inside of a region: every other run is. */
function share(runs: string, width: number, height: number): number {
  return runs.split(' ').reduce((sum, run, i) => sum + (i % 2) * Number(run), 0) / (width * height);
}

/** Rows of a name and a value. */
export function preparation(m: Metadata): [string, string][] {
  const p = m.preprocessing ?? {};
  const rows: [string, string][] = [[p.tiles ? 'Tiles' : 'Image size', `${inputSize(m)} px`]];
  if (p.tiles) {
    const t = p.tiles;
    rows.push(['Overlap of tiles', `${t.overlap} px at least`]);
    rows.push(['Scale', t.longest_side ? `longest side ${t.longest_side} px` : 'the image’s own']);
    rows.push(['Tiles compared with', t.columns && t.rows ? `the same of ${t.columns} × ${t.rows} places` : 'tiles of all places']);
  }
  if (p.fit === 'pad') rows.push(['Other aspect ratios', 'get a border']);
  if (p.fit === 'crop') rows.push(['Other aspect ratios', 'are cropped']);
  if (p.window) rows.push(['Values from black to white', `${p.window[0]} to ${p.window[1]}`]);
  if (p.region) rows.push(['Part that is judged', percent(share(p.region.runs, p.region.width, p.region.height))]);
  return rows;
}
