// A plot of the loss of each epoch.

import { useWidth } from './store';

const height = 180;
const left = 52;
const bottom = 26;
const top = 12;

export function LossChart({ losses, epochs }: { losses: number[]; epochs: number }) {
  const [frame, width] = useWidth<HTMLDivElement>(640);
  return <div ref={frame}>{losses.length === 0 ? <p class="chart-empty">The curve begins with the first epoch.</p> : <Curve losses={losses} epochs={epochs} width={width} />}</div>;
}

function Curve({ losses, epochs, width }: { losses: number[]; epochs: number; width: number }) {
  const last = losses[losses.length - 1]!;
  const high = Math.max(...losses);
  // At least a factor of 1.5, so that noise does not fill the plot and the ticks differ.
  const low = Math.min(...losses, high / 1.5);
  const span = Math.max(epochs, losses.length, 2);
  // A logarithmic axis, because a loss falls by orders of magnitude.
  const l = Math.log(Math.max(low, 1e-12));
  const h = Math.max(Math.log(Math.max(high, 1e-12)), l + 1e-6);
  const x = (epoch: number) => left + ((epoch - 1) / (span - 1)) * (width - left - 12);
  const y = (v: number) => top + ((h - Math.log(Math.max(v, 1e-12))) / (h - l)) * (height - top - bottom);
  const points = losses.map((v, i) => `${x(i + 1).toFixed(1)},${y(v).toFixed(1)}`);
  const summary = `Loss by epoch: from ${losses[0]!.toPrecision(3)} in epoch 1 to ${last.toPrecision(3)} in epoch ${losses.length} of ${span}.`;
  return (
    <svg class="chart" viewBox={`0 0 ${width} ${height}`} role="img" aria-label={summary}>
      {[high, Math.exp((h + l) / 2), low].map((v) => (
        <g key={v}>
          <line class="grid" x1={left} x2={width - 12} y1={y(v)} y2={y(v)} />
          <text class="tick" x={left - 8} y={y(v) + 4} text-anchor="end">
            {v.toPrecision(2)}
          </text>
        </g>
      ))}
      <text class="tick" x={left} y={height - 6}>
        epoch 1
      </text>
      <text class="tick" x={width - 12} y={height - 6} text-anchor="end">
        {span}
      </text>
      <polygon class="area" points={`${x(1).toFixed(1)},${height - bottom} ${points.join(' ')} ${x(losses.length).toFixed(1)},${height - bottom}`} />
      <polyline class="line" points={points.join(' ')} />
      <circle class="dot" cx={x(losses.length)} cy={y(last)} r={4} />
    </svg>
  );
}
