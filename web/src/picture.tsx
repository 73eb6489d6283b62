// An image with its heatmap and its regions over it.

import { score } from './format';
import type { Judged } from './judging';

export function Picture({ image, opacity, boxes, small }: { image: Judged; opacity: number; boxes: boolean; small?: boolean }) {
  const regions = image.verdict?.regions ?? [];
  const { thumb } = image;
  if (image.unshown) {
    return (
      <span class="picture">
        {image.heatmapURL ? (
          <img src={image.heatmapURL} alt={small ? '' : `${image.name}, in grey, with its heatmap`} />
        ) : (
          <span class="no-picture">{image.name.split('.').pop()?.toUpperCase()}</span>
        )}
      </span>
    );
  }
  if (!thumb) return <span class="picture no-picture" aria-hidden="true" />;
  // The frame has the shape of the image, so that heatmap and regions fit it exactly.
  const frame = { aspectRatio: `${thumb.width} / ${thumb.height}`, width: `min(100%, calc(var(--most) * ${thumb.width / thumb.height}))` };
  return (
    <span class="picture" style={frame}>
      <img src={small ? thumb.url : image.url} alt={small ? '' : image.name} />
      {image.heatmapURL && <img class="heat" src={image.heatmapURL} alt="" style={{ opacity }} />}
      {boxes && regions.length > 0 && (
        <svg class="boxes" viewBox={`0 0 ${thumb.width} ${thumb.height}`} preserveAspectRatio="none" aria-hidden="true">
          {regions.map((r, i) => (
            <g key={i}>
              <rect class="box-edge" x={r.x} y={r.y} width={r.width} height={r.height} vector-effect="non-scaling-stroke" />
              <rect class="box" x={r.x} y={r.y} width={r.width} height={r.height} vector-effect="non-scaling-stroke">
                <title>{score(r.score)}</title>
              </rect>
            </g>
          ))}
        </svg>
      )}
    </span>
  );
}
