// Judging images: what judges, the images, and their verdicts. It outlives the view.

import { ApiError, requestBlob, requestJSON, sentence } from './api';
import { thumbnail, type Thumbnail } from './files';
import { fileKind, headBytes } from './kinds';
import { Store } from './store';
import type { Label, Verdict } from './types';
import type { PathFile } from './zip';

export type Source = { kind: 'model'; name: string } | { kind: 'job'; id: string; title: string } | { kind: 'file'; file: File };

export interface Judged {
  id: number;
  name: string;
  file: Blob;
  url: string;
  state: 'waiting' | 'running' | 'done' | 'error';
  verdict?: Verdict;
  heatmapURL?: string;
  thumb?: Thumbnail;
  error?: string;
  /** Whether the picture below the heatmap is in it: the browser cannot show the file. */
  unshown?: boolean;
  label?: Label;
}

export const source = new Store<Source | undefined>(undefined);
export const judged = new Store<Judged[]>([]);

/** How the pictures are shown. */
export const opacityStore = new Store(0.65);
export const boxesStore = new Store(true);

const parallel = 2;
let next = 1;
let running = 0;
/** The number of the current run: a change of the model makes the earlier results void. */
let run = 0;
let modelFile: Promise<Blob> | undefined;

export function setSource(s: Source | undefined): void {
  if (same(source.get(), s)) return;
  source.set(s);
  modelFile = undefined;
  again();
}

function same(a: Source | undefined, b: Source | undefined): boolean {
  if (a?.kind === 'model' && b?.kind === 'model') return a.name === b.name;
  if (a?.kind === 'job' && b?.kind === 'job') return a.id === b.id;
  return false;
}

export function sourceTitle(s: Source): string {
  return s.kind === 'model' ? s.name : s.kind === 'job' ? s.title : s.file.name;
}

/** Judges all images again. */
export function again(): void {
  run++;
  judged.update((list) =>
    list.map((j) => {
      drop(j);
      return { id: j.id, name: j.name, file: j.file, url: j.url, state: 'waiting' as const, thumb: j.thumb, unshown: j.unshown };
    }),
  );
  work();
}

function drop(j: Judged): void {
  if (j.heatmapURL) URL.revokeObjectURL(j.heatmapURL);
}

export async function addImages(files: PathFile[]): Promise<void> {
  const list: Judged[] = [];
  for (const { path, file } of files) {
    const kind = fileKind(path, new Uint8Array(await file.slice(0, headBytes).arrayBuffer()));
    if (kind.use === 'ignored' || kind.use === 'classes') continue;
    const j: Judged = { id: next++, name: path, file, url: URL.createObjectURL(file), state: 'waiting' };
    if (kind.use === 'skipped' && kind.never) Object.assign(j, { state: 'error', error: kind.reason });
    list.push(j);
  }
  judged.update((old) => [...old, ...list]);
  work();
  for (const j of list) makeThumb(j);
}

/** Thumbnails are made one after another: a photo takes up to 100 MB while it is decoded. */
let thumbs: Promise<unknown> = Promise.resolve();

function makeThumb(j: Judged): void {
  const there = () => judged.get().find((other) => other.id === j.id);
  thumbs = thumbs.then(async () => {
    if (!there()) return;
    const thumb = await thumbnail(j.file, 224);
    const now = there();
    if (thumb && now) change(j.id, { thumb });
    else if (thumb) URL.revokeObjectURL(thumb.url);
    else if (now) await fetchPicture(now);
  });
}

/** Releases the pictures of an image that is removed. */
function forget(j: Judged): void {
  drop(j);
  URL.revokeObjectURL(j.url);
  if (j.thumb) URL.revokeObjectURL(j.thumb.url);
}

export function removeImage(id: number): void {
  judged.update((list) =>
    list.filter((j) => {
      if (j.id !== id) return true;
      forget(j);
      return false;
    }),
  );
}

export function clearImages(): void {
  run++;
  judged.get().forEach(forget);
  judged.set([]);
}

export function change(id: number, values: Partial<Judged>): void {
  judged.update((list) => list.map((j) => (j.id === id ? { ...j, ...values } : j)));
}

function work(): void {
  const s = source.get();
  if (s === undefined) return;
  while (running < parallel) {
    const j = judged.get().find((j) => j.state === 'waiting');
    if (j === undefined) return;
    running++;
    change(j.id, { state: 'running' });
    const mine = run;
    judge(s, j)
      .then(
        (values) => mine === run && change(j.id, values),
        (e: unknown) => mine === run && change(j.id, { state: 'error', error: sentence(e) }),
      )
      .finally(() => {
        running--;
        work();
      });
  }
}

async function judge(s: Source, j: Judged): Promise<Partial<Judged>> {
  const verdict = await detect(s, j, j.unshown ? 'true' : 'overlay');
  return { state: 'done', verdict, heatmapURL: verdict.heatmap ? pngURL(verdict.heatmap) : undefined };
}

/** Fetches a heatmap with the picture in it, for a file that the browser cannot show. */
async function fetchPicture(j: Judged): Promise<void> {
  const s = source.get();
  change(j.id, { unshown: true });
  if (s === undefined || j.state !== 'done' || j.heatmapURL === undefined) return;
  const mine = run;
  const verdict = await detect(s, j, 'true').catch(() => undefined);
  if (mine === run && verdict?.heatmap) {
    drop(j);
    change(j.id, { heatmapURL: pngURL(verdict.heatmap) });
  }
}

const busyTries = 6;

async function detect(s: Source, j: Judged, explain: 'overlay' | 'true' | 'false'): Promise<Verdict> {
  const form = new FormData();
  form.append('explain', explain);
  let path = 'detect';
  switch (s.kind) {
    case 'model':
      path = `models/${encodeURIComponent(s.name)}/detect`;
      break;
    case 'job':
      modelFile ??= requestBlob(`jobs/${encodeURIComponent(s.id)}/model`);
      form.append('modelFile', await modelFile, 'model.zip');
      break;
    case 'file':
      form.append('modelFile', s.file, 'model');
  }
  form.append('imageFile', j.file, j.name.split('/').pop());
  for (let n = 1; ; n++) {
    try {
      return await requestJSON<Verdict>(path, { method: 'POST', body: form });
    } catch (e) {
      if (!(e instanceof ApiError)) throw e;
      // A model that decides by the mean squared error has no anomaly map.
      if (e.status === 422 && explain !== 'false' && e.message.startsWith('The model gives no anomaly map')) return detect(s, j, 'false');
      if (e.status !== 503 || n === busyTries) throw e;
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

function pngURL(base64: string): string {
  return URL.createObjectURL(new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: 'image/png' }));
}

export function scoreOf(v: Verdict): number {
  return v.anomaly_score ?? v.reconstruction_error;
}

export type Order = 'added' | 'highest' | 'lowest' | 'name';
export type Filter = 'all' | 'anomalous' | 'normal' | 'error';

export function arranged(list: Judged[], order: Order, filter: Filter): Judged[] {
  const kept = list.filter((j) => {
    switch (filter) {
      case 'all':
        return true;
      case 'error':
        return j.state === 'error';
      default:
        return j.verdict !== undefined && j.verdict.is_anomaly === (filter === 'anomalous');
    }
  });
  const by = (j: Judged) => (j.verdict ? scoreOf(j.verdict) : -Infinity);
  switch (order) {
    case 'highest':
      return kept.sort((a, b) => by(b) - by(a));
    case 'lowest':
      return kept.sort((a, b) => by(a) - by(b));
    case 'name':
      return kept.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  }
  return kept;
}
