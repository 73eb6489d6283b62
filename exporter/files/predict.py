#!/usr/bin/env python3
"""Judges images with the model beside this file: is it normal, or an anomaly?

    python predict.py IMAGE_OR_FOLDER ... [--json] [--model autoencoder.onnx]

Needs onnxruntime, Pillow and numpy (requirements.txt). Exit status: 0 all
normal, 1 some anomalous, 2 an image or the model could not be read.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"}


def load(path):
    """The model as a session, and its metadata.json, which travels inside it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["metadata_json"])
    return session, metadata


def prepare(path, size):
    """The image as the network was trained on it: 1×3×size×size, in 0…1."""
    with Image.open(path) as image:
        image = image.convert("RGB").resize((size, size), Image.BILINEAR)
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[np.newaxis] / np.float32(255)


def judge(session, metadata, path):
    """The verdict on one image, with the keys of the service's answer."""
    decision = metadata.get("decision") or {"measure": "mse", "threshold": metadata["threshold"]}
    if decision["measure"] != "mse":
        raise ValueError(f"the model decides by {decision['measure']}, which this script does not know")
    tensor = prepare(path, metadata["image_size"])
    error = float(session.run(["reconstruction_error"], {"image": tensor})[0][0])
    return {
        "file": str(path),
        "reconstruction_error": error,
        "threshold": decision["threshold"],
        "is_anomaly": error > decision["threshold"],
        "class_names": metadata.get("class_names") or ["normal", "anomaly"],
        "measure": "mse",
        "mse": error,
    }


def images(paths):
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
        else:
            yield path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--model", default=Path(__file__).with_name("autoencoder.onnx"))
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    arguments = parser.parse_args()
    try:
        session, metadata = load(arguments.model)
    except Exception as problem:
        print(f"{arguments.model}: {problem}", file=sys.stderr)
        return 2
    results = []
    for path in images(arguments.paths):
        try:
            results.append(judge(session, metadata, path))
        except Exception as problem:
            results.append({"file": str(path), "error": str(problem)})
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        for r in results:
            if "error" in r:
                print(f"{r['file']}: cannot be judged: {r['error']}")
                continue
            verdict = "ANOMALY" if r["is_anomaly"] else "normal"
            print(f"{r['file']}: {verdict} (error {r['reconstruction_error']:.6f}, threshold {r['threshold']:.6f})")
    if not results or any("error" in r for r in results):
        return 2
    return 1 if any(r["is_anomaly"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
