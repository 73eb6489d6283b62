// An image with its heatmap and its regions over it.

import { useState } from 'preact/hooks';
import { score } from './format';
import { fetchPicture, type Judged } from './judging';

export function Picture({ image, opacity, boxes, small }: { image: Judged; opacity: number; boxes: boolean; small?: boolean }) {
  const [size, setSize] = useState<{ w: number; h: number }>();
  const regions = image.verdict?.regions ?? [];
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
  // The frame has the shape of the image, so that heatmap and regions fit it exactly.
  const frame = size && { aspectRatio: `${size.w} / ${size.h}`, width: `min(100%, calc(var(--most) * ${size.w / size.h}))` };
  return (
    <span class="picture" style={frame}>
      <img
        src={image.url}
        alt={small ? '' : image.name}
        loading={small ? 'lazy' : 'eager'}
        onLoad={(e) => setSize({ w: e.currentTarget.naturalWidth, h: e.currentTarget.naturalHeight })}
        onError={() => void fetchPicture(image)}
      />
      {image.heatmapURL && <img class="heat" src={image.heatmapURL} alt="" style={{ opacity }} />}
      {boxes && size && regions.length > 0 && (
        <svg class="boxes" viewBox={`0 0 ${size.w} ${size.h}`} preserveAspectRatio="none" aria-hidden="true">
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
