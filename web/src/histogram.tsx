// The scores of a model in one plot, with its threshold as a line that can be moved by
// pointer and by keyboard.

import { percent, score } from './format';
import { useWidth } from './store';
import type { Scores } from './types';

const plotHeight = 190;
const top = 26;
const left = 14;
const right = 14;
const rowHeight = 30;
const bins = 48;

/**
 * The share of normal images above a threshold that calibration promises: with k of n
 * scores above it, a further one is above it with a probability of at most (k+1)/(n+1).
 */
export function falseAlarms(calibration: Scores['calibration'], threshold: number): number | undefined {
  const { count, scores } = calibration;
  if (count === 0 || scores.length === 0) return undefined;
  const above = (scores.filter((s) => s > threshold).length / scores.length) * count;
  return Math.min(1, (above + 1) / (count + 1));
}

interface HistogramProps {
  scores: Scores;
  /** The threshold that the line shows. */
  draft: number;
  onMove: (threshold: number) => void;
}

export function Histogram({ scores, draft, onMove }: HistogramProps) {
  const [svg, width] = useWidth<SVGSVGElement>(720);
  const calibration = scores.calibration.scores;
  const end = Math.max(2.1 * scores.threshold, 1.15 * (calibration[calibration.length - 1] ?? 0), 1e-9);
  const x = (v: number) => left + Math.min(Math.max(v / end, 0), 1) * (width - left - right);
  const counts = new Array<number>(bins).fill(0);
  for (const s of calibration) counts[Math.min(bins - 1, Math.max(0, Math.floor((s / end) * bins)))]! += 1;
  const most = Math.max(...counts, 1);
  const marks = scores.feedback.filter((f) => f.anomaly_score !== null);
  const rows = (scores.recent.scores.length > 0 ? 1 : 0) + (marks.length > 0 ? 1 : 0);
  const base = top + plotHeight;
  const height = base + 24 + rows * rowHeight;
  const recentY = base + 24 + rowHeight / 2;
  const feedbackY = height - rowHeight / 2;
  const at = (e: PointerEvent) => {
    const box = svg.current!.getBoundingClientRect();
    const position = ((e.clientX - box.left) / box.width) * width;
    onMove(round(((position - left) / (width - left - right)) * end, end));
  };
  const key = (e: KeyboardEvent) => {
    const step = end / 200;
    const to: Record<string, number> = {
      ArrowRight: draft + step,
      ArrowUp: draft + step,
      ArrowLeft: draft - step,
      ArrowDown: draft - step,
      PageUp: draft + 10 * step,
      PageDown: draft - 10 * step,
      Home: 0,
      End: end,
    };
    const v = to[e.key];
    if (v === undefined) return;
    e.preventDefault();
    onMove(round(v, end));
  };
  const rate = falseAlarms(scores.calibration, draft);
  const line = x(draft);
  return (
    <svg
      ref={svg}
      class="histogram"
      height={height}
      viewBox={`0 0 ${width} ${height}`}
      onPointerDown={(e) => {
        if (e.button !== 0) return;
        e.currentTarget.setPointerCapture(e.pointerId);
        at(e);
      }}
      onPointerMove={(e) => e.currentTarget.hasPointerCapture(e.pointerId) && at(e)}
    >
      <g aria-hidden="true">
        <rect class="zone" x={line} y={top} width={Math.max(0, width - right - line)} height={height - top - 24} />
        {counts.map((n, i) => {
          const w = (width - left - right) / bins;
          const h = (n / most) * (plotHeight - 14);
          const middle = ((i + 0.5) / bins) * end;
          return n > 0 && <rect key={i} class={middle > draft ? 'bar above' : 'bar'} x={left + i * w + 1} y={base - h} width={w - 2} height={h} rx={2} />;
        })}
        <line class="axis" x1={left} x2={width - right} y1={base} y2={base} />
        {ticks(end, width < 500 ? 4 : 7).map((t) => (
          <text key={t} class="tick" x={x(t)} y={base + 16} text-anchor="middle">
            {t}
          </text>
        ))}
        {scores.recent.scores.map((s, i) => (
          <circle key={i} class={s > draft ? 'recent above' : 'recent'} cx={x(s)} cy={recentY + jitter(i) * 9} r={3} />
        ))}
        {marks.map((f) => {
          const cx = x(f.anomaly_score!);
          return f.label === 'normal' ? (
            <circle key={f.id} class="mark-normal" cx={cx} cy={feedbackY} r={5.5} />
          ) : (
            <path key={f.id} class="mark-anomalous" d={`M${cx} ${feedbackY - 7}l7 7-7 7-7-7z`} />
          );
        })}
        {draft !== scores.threshold && <line class="current" x1={x(scores.threshold)} x2={x(scores.threshold)} y1={top} y2={height - 4} />}
      </g>
      <g
        class="handle"
        role="slider"
        tabindex={0}
        aria-label="Threshold"
        aria-orientation="horizontal"
        aria-valuemin={0}
        aria-valuemax={end}
        aria-valuenow={draft}
        aria-valuetext={`${score(draft)}${rate === undefined ? '' : `, at most ${percent(rate)} false alarms`}`}
        onKeyDown={key}
      >
        <line x1={line} x2={line} y1={top - 6} y2={height - 4} />
        <rect class="hit" x={line - 16} y={0} width={32} height={height} />
        <rect class="grip" x={line - 9} y={top - 20} width={18} height={24} rx={6} />
        <path class="grip-lines" d={`M${line - 3} ${top - 13}v10M${line + 3} ${top - 13}v10`} />
      </g>
    </svg>
  );
}

/** Rounds a threshold to three digits of the plot's range. */
function round(v: number, end: number): number {
  const unit = 10 ** Math.floor(Math.log10(end) - 3);
  return Number((Math.round(Math.min(Math.max(v, 0), end) / unit) * unit).toPrecision(6));
}

function ticks(end: number, most: number): number[] {
  const raw = end / most;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * ([1, 2, 5, 10].find((f) => f * unit >= raw) ?? 10);
  const list: number[] = [];
  for (let t = 0; t <= end; t += step) list.push(Number(t.toPrecision(6)));
  return list;
}

/** A fixed pattern between -1 and 1 that separates points of the same score. */
function jitter(i: number): number {
  return ((i * 0.618034) % 1) * 2 - 1;
}

export function Legend({ scores }: { scores: Scores }) {
  return (
    <ul class="legend">
      <li>
        <span class="swatch bar" /> calibration: {scores.calibration.count} normal images
      </li>
      {scores.recent.scores.length > 0 && (
        <li>
          <span class="swatch recent" /> recently judged: {scores.recent.count}
        </li>
      )}
      {scores.feedback.some((f) => f.label === 'normal') && (
        <li>
          <span class="swatch normal" /> really normal
        </li>
      )}
      {scores.feedback.some((f) => f.label === 'anomalous') && (
        <li>
          <span class="swatch anomalous" /> really anomalous
        </li>
      )}
    </ul>
  );
}
