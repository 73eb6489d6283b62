"""Maps and masks, and figures of them by other means, for internal/evaluation.

    python make_pixels.py > pixels.json      # needs numpy, scipy, scikit-learn

The AUROC of pixels is scikit-learn's, the regions are scipy's, and the per-region overlap is
computed here as it is defined: one threshold after the other, on whole images.
"""
import json

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score

LIMIT = 0.3


def at_own_size(values, height, width):
    side = len(values)
    rows = [int((y + 0.5) * side / height) for y in range(height)]
    columns = [int((x + 0.5) * side / width) for x in range(width)]
    return values[np.ix_(rows, columns)]


def per_region_overlap(maps, masks):
    regions = []  # the values of each region's pixels
    for m, mask in zip(maps, masks):
        labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [m[labels == i] for i in range(1, n + 1)]
    normal = np.concatenate([m[mask == 0] for m, mask in zip(maps, masks)])
    curve = [(0.0, 0.0)]
    for t in sorted(set(np.concatenate([m.ravel() for m in maps])), reverse=True):
        curve.append((np.mean(normal >= t), np.mean([np.mean(r >= t) for r in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if x0 >= LIMIT:
            break
        if x1 > LIMIT:
            y1 = y0 + (y1 - y0) * (LIMIT - x0) / (x1 - x0)
            x1 = LIMIT
        area += (x1 - x0) * (y0 + y1) / 2
    return area / LIMIT, len(regions)


def main():
    cases = []
    for seed, side, good, bad, height, width, apart, digits in [
        (1, 8, 3, 3, 8, 8, 1.0, 4), (2, 8, 2, 3, 13, 21, 0.5, 1), (3, 12, 2, 2, 9, 7, 1.5, 3), (4, 6, 1, 4, 30, 24, 0.0, 2), (5, 10, 2, 2, 10, 10, -1.0, 1),
    ]:
        r = np.random.default_rng(seed)
        masks = [np.zeros((height, width), int) for _ in range(good)]
        masks += [(ndimage.gaussian_filter(r.normal(size=(height, width)), 1) > 0.3).astype(int) for _ in range(bad)]
        maps = []
        for mask in masks:
            defect = ndimage.zoom(mask.astype(float), (side / height, side / width), order=1)
            maps.append(np.round(r.normal(size=(side, side)) + apart * defect, digits).astype(np.float32))
        whole = [at_own_size(m, height, width) for m in maps]
        pro, regions = per_region_overlap(whole, masks)
        cases.append({
            "side": side, "width": width, "height": height,
            "good": [m.ravel().tolist() for m in maps[:good]],
            "bad": [{"values": m.ravel().tolist(), "mask": "".join(map(str, mask.ravel()))} for m, mask in zip(maps[good:], masks[good:])],
            "auroc": roc_auc_score(np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in whole])),
            "pro": pro, "regions": regions,
        })
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
