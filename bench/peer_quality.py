"""Measures how well the Python service's recipe detects defects: the AUROC of the mean squared error
for each kind of defect of a data set (train/good, test/good, test/<defect>), and the false alarm and
hit rates at its threshold, the mean plus two standard deviations of the training images' errors.

    python bench/peer_quality.py DATASET [--level 3] [--image-size 128] [--seed 0]

Prints one JSON object with the keys of `anomaly evaluate --json`.
"""

import argparse
import json
import os
import sys
import time

import numpy as np
import torch

from peer_train import LEVELS, find_images, load_image, train


def errors(network, paths, side, batch=16):
    """Returns the mean squared error of each image."""
    out = []
    with torch.no_grad():
        for i in range(0, len(paths), batch):
            x = torch.stack([load_image(p, side) for p in paths[i:i + batch]])
            out += ((network(x) - x) ** 2).mean(dim=(1, 2, 3)).tolist()
    return np.array(out)


def auroc(good, bad):
    """Returns the probability that a defect scores higher than a normal image; ties count half."""
    above = (bad[:, None] > good[None, :]).mean()
    return float(above + (bad[:, None] == good[None, :]).mean() / 2)


def main():
    p = argparse.ArgumentParser(description="measure the Python recipe on a data set")
    p.add_argument("dataset")
    p.add_argument("--level", type=int, default=3, choices=sorted(LEVELS))
    p.add_argument("--image-size", type=int, default=128)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    a = p.parse_args()
    test = os.path.join(a.dataset, "test")
    paths = find_images(os.path.join(a.dataset, "train", "good"))
    kinds = {name: find_images(os.path.join(test, name)) for name in sorted(os.listdir(test))}
    normal = kinds.pop("good", [])
    if not paths or not normal or not kinds:
        sys.exit(f"{a.dataset} is not a data set: expected train/good, test/good and test/<defect>")

    torch.set_num_threads(a.threads)
    start = time.perf_counter()
    network, metadata = train(paths, a.level, a.image_size, a.seed)
    trained = time.perf_counter()
    threshold = metadata["threshold"]
    good = errors(network, normal, a.image_size)
    defects, scores = [], []
    for name, files in kinds.items():
        if files:
            bad = errors(network, files, a.image_size)
            defects.append({"name": name, "images": len(files), "auroc": auroc(good, bad), "hits": float((bad > threshold).mean())})
            scores.append(bad)
    done = time.perf_counter()
    everything = np.concatenate(scores)
    print(json.dumps({
        "measure": "mse", "threshold": threshold, "normal_images": len(good), "false_alarms": float((good > threshold).mean()),
        "defects": defects,
        "mean": {"name": "mean", "images": len(everything), "auroc": float(np.mean([d["auroc"] for d in defects])),
                 "hits": float(np.mean([d["hits"] for d in defects]))},
        "together": {"name": "all", "images": len(everything), "auroc": auroc(good, everything), "hits": float((everything > threshold).mean())},
        "seconds": {"training": trained - start, "detection": done - trained},
    }))


if __name__ == "__main__":
    main()
