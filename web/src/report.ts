// The verdicts as files to take away: CSV, JSON, and a page that prints.

import { percent, score } from './format';
import { scoreOf, type Judged } from './judging';

/** Verdicts as CSV. A cell that a spreadsheet would compute is quoted as text. */
export function csv(list: Judged[]): string {
  const cell = (v: string | number) => {
    let s = String(v);
    if (typeof v === 'string' && /^[=+\-@\t\r]/.test(s)) s = `'${s}`;
    return /[",\n\r]/.test(s) ? `"${s.replaceAll('"', '""')}"` : s;
  };
  const rows: (string | number)[][] = [['file', 'verdict', 'anomaly_score', 'threshold', 'regions', 'label', 'error']];
  for (const j of list) {
    const v = j.verdict;
    rows.push([j.name, v ? (v.is_anomaly ? 'anomalous' : 'normal') : '', v ? scoreOf(v) : '', v?.threshold ?? '', v?.regions?.length ?? '', j.label ?? '', j.error ?? '']);
  }
  return rows.map((r) => r.map(cell).join(',')).join('\r\n') + '\r\n';
}

/** Verdicts as JSON, in the form of anomaly detect --json. */
export function json(list: Judged[]): string {
  const out = list.map((j) => {
    if (!j.verdict) return { file: j.name, error: j.error ?? 'not judged yet' };
    const { heatmap: _, ...verdict } = j.verdict;
    return { file: j.name, ...verdict, ...(j.label ? { label: j.label } : {}) };
  });
  return JSON.stringify(out, null, 2) + '\n';
}

const escapes: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };
const escape = (s: string) => s.replace(/[&<>"']/g, (c) => escapes[c]!);

const style = `body{font:15px/1.5 system-ui,sans-serif;color:#1c2321;margin:2rem auto;max-width:60rem;padding:0 1rem}
h1{font-size:1.6rem;margin:0}p{margin:.3rem 0 1rem;color:#4b5754}ul{list-style:none;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr));gap:1rem}
li{border:1px solid #d5dcda;border-radius:8px;overflow:hidden;break-inside:avoid}li.bad{border-color:#b42318}img{display:block;width:100%}div{padding:.6rem .8rem}
strong{display:block}.bad strong{color:#b42318}.good strong{color:#0b6b4f}span{display:block;font-size:.85rem;color:#4b5754;overflow-wrap:anywhere}@media print{body{margin:0;max-width:none}}`;

/** A page with pictures and verdicts that needs no other file. */
export async function report(list: Judged[], model: string, opacity: number): Promise<string> {
  const done = list.filter((j) => j.verdict);
  const bad = done.filter((j) => j.verdict!.is_anomaly).length;
  let items = '';
  for (const j of list) {
    const picture = await drawn(j, opacity);
    const v = j.verdict;
    const verdict = v ? (v.is_anomaly ? 'Anomalous' : 'Normal') : 'Not judged';
    items += `<li class="${v ? (v.is_anomaly ? 'bad' : 'good') : 'bad'}">${picture ? `<img alt="" src="${picture}">` : ''}<div><strong>${verdict}</strong><span>${escape(j.name)}</span><span>${
      v ? `score ${score(scoreOf(v))}, threshold ${score(v.threshold)}` : escape(j.error ?? '')
    }</span>${j.label ? `<span>marked as ${j.label}</span>` : ''}</div></li>`;
  }
  const share = done.length > 0 ? ` (${percent(bad / done.length)})` : '';
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Verdicts of ${escape(model)}</title><style>${style}</style></head>
<body><h1>Verdicts of ${escape(model)}</h1><p>${escape(new Date().toLocaleString())}. ${done.length} images judged, ${bad} anomalous${share}.</p><ul>${items}</ul></body></html>
`;
}

/** The image with its heatmap and regions, as a data URL. */
async function drawn(j: Judged, opacity: number): Promise<string | undefined> {
  try {
    const heatmap = j.heatmapURL ? await createImageBitmap(await (await fetch(j.heatmapURL)).blob()) : undefined;
    const base = j.unshown ? heatmap : await createImageBitmap(j.file);
    if (!base) return undefined;
    const scale = Math.min(1, 480 / Math.max(base.width, base.height));
    const canvas = document.createElement('canvas');
    canvas.width = Math.round(base.width * scale);
    canvas.height = Math.round(base.height * scale);
    const c = canvas.getContext('2d')!;
    c.drawImage(base, 0, 0, canvas.width, canvas.height);
    if (!j.unshown) {
      c.globalAlpha = opacity;
      if (heatmap) c.drawImage(heatmap, 0, 0, canvas.width, canvas.height);
      c.globalAlpha = 1;
      c.strokeStyle = '#fff';
      c.lineWidth = 2;
      for (const r of j.verdict?.regions ?? []) c.strokeRect(r.x * scale, r.y * scale, r.width * scale, r.height * scale);
    }
    return canvas.toDataURL('image/jpeg', 0.85);
  } catch {
    return undefined;
  }
}
