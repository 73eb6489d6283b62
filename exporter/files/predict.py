#!/usr/bin/env python3
"""Decide with the model in this folder whether images are normal or anomalies.

    python predict.py photo.jpg folder/ "more/**/*.png"
    python predict.py folder/ --json > verdicts.json
    python predict.py folder/ --model old.pt              # with PyTorch, if it is installed

A folder means the images in it and in its subfolders. A pattern must be quoted; ** in it
matches any number of folders. A .pt has only the autoencoder: a model whose anomaly score
is not the mean squared error needs the autoencoder.onnx of the same training. Requires
onnxruntime, Pillow and numpy (requirements.txt). Exit status: 0 if all images are normal,
1 if there are anomalies, 2 if an image or the model could not be read.
"""
import argparse
import collections
import glob
import json
import math
import pickle
import sys
from pathlib import Path

try:
    import numpy as np
    from PIL import Image
except ImportError as missing:
    print(f"{missing}: pip install -r requirements.txt", file=sys.stderr)
    sys.exit(2)

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"}
BATCH = 8  # images in one run of the network

# measure takes N×3×size×size images and returns their mean squared errors and their scores
# by the model's other measure. If the model has no other measure, the scores are None.
# other_measure is that measure's name, or None.
Model = collections.namedtuple("Model", "measure size metadata other_measure")


class Problem(Exception):
    """The model or its metadata cannot be used. The message is one sentence with the remedy."""


def load(path):
    return load_checkpoint(path) if path.lower().endswith(".pt") else load_onnx(path)


def load_onnx(path):
    try:
        import onnxruntime
    except ImportError:
        raise Problem("onnxruntime is not installed: pip install -r requirements.txt")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    if image.type != "tensor(float)" or "reconstruction_error" not in [o.name for o in session.get_outputs()]:
        raise Problem("its inputs or outputs differ from autoencoder.onnx; use that file")
    about = session.get_modelmeta().custom_metadata_map
    text = about.get("metadata_json")
    other_measure = about.get("measure") if "mse" in [o.name for o in session.get_outputs()] else None

    def measure(images):
        if other_measure is None:
            return session.run(["reconstruction_error"], {"image": images})[0], None
        return session.run(["mse", "reconstruction_error"], {"image": images})

    return Model(measure, image.shape[2], json.loads(text) if text else None, other_measure)


def load_checkpoint(path):
    try:
        import torch
        from torch import nn
    except ImportError:
        raise Problem("PyTorch is not installed: pip install torch, or use autoencoder.onnx, which does not require it")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        weights, config = checkpoint["model_state_dict"], checkpoint["config"]
    except (pickle.UnpicklingError, KeyError, TypeError):
        raise Problem("it is not the autoencoder.pt of a training")
    widths = [w.shape[0] for name, w in weights.items() if name.startswith("encoder.") and name.endswith(".weight")]
    channels = config.get("channels", [3, *widths])
    encoder, decoder = [], []
    for outer, inner in zip(channels, channels[1:]):
        encoder += [nn.Conv2d(outer, inner, 3, stride=2, padding=1), nn.ReLU()]
        decoder = [nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=1), nn.ReLU()] + decoder
    decoder[-1] = nn.Sigmoid()
    network = nn.Sequential(collections.OrderedDict(encoder=nn.Sequential(*encoder), decoder=nn.Sequential(*decoder)))
    network.load_state_dict(weights, strict=True)
    if "metadata_json" in config:
        metadata = json.loads(config["metadata_json"])
    else:  # a checkpoint without metadata: the same defaults as in the service
        metadata = {"threshold": float(config.get("threshold", 0.02)), "class_names": config.get("class_names")}

    def measure(images):
        images = torch.from_numpy(images)
        with torch.no_grad():
            return ((network(images) - images) ** 2).mean(dim=(1, 2, 3)).numpy(), None

    return Model(measure, config["image_size"], metadata, None)


def decision_of(metadata, other_measure):
    """Return the measure, the threshold and the class names of a metadata.json."""
    if not isinstance(metadata, dict):
        raise Problem("it is not a metadata.json")
    if metadata.get("model_type") not in (None, "", "autoencoder"):
        raise Problem(f"it is the metadata of a {metadata['model_type']}, not of an autoencoder")
    decision = metadata.get("decision")
    if decision is None:
        decision = {"measure": "mse", "threshold": metadata.get("threshold")}
    if decision.get("measure") not in ("mse", other_measure):
        raise Problem(f"the model decides by {decision.get('measure')}, which this file does not give; use the autoencoder.onnx of the same training, which has the whole model")
    for threshold in metadata.get("threshold"), decision.get("threshold"):
        if not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
            raise Problem(f"the threshold is {threshold}, expected a number of 0 or more")
    return decision["measure"], decision["threshold"], metadata.get("class_names") or ["normal", "anomaly"]


def find(arguments):
    """Yield the images of the arguments. Missing files are included, so that each is reported."""
    for argument in arguments:
        if Path(argument).is_dir():
            yield from below(argument)
        elif Path(argument).exists() or not any(c in argument for c in "*?["):
            yield argument
        else:
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))
            found = [p for m in matches for p in (below(m) if m.is_dir() else [str(m)] if is_image(m) else [])]
            yield from dict.fromkeys(found or [argument])  # without duplicates


def below(folder):
    return [str(p) for p in sorted(Path(folder).rglob("*")) if is_image(p) and not p.is_dir()]


def is_image(path):
    return path.suffix.lower() in ENDINGS


def prepare(path, size):
    """Return the image with the preprocessing of the training: 3×size×size, in 0…1."""
    with Image.open(path) as image:
        image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


def judge(model, measure, threshold, class_names, paths):
    """Yield the result of each image, with the keys of the service's response."""
    for start in range(0, len(paths), BATCH):
        results, tensors = [], []
        for path in paths[start:start + BATCH]:
            results.append({"file": path})
            try:
                tensors.append(prepare(path, model.size))
            except Exception as problem:  # Pillow raises many types
                results[-1]["error"] = str(problem) or repr(problem)
        mse, other = model.measure(np.stack(tensors)) if tensors else ([], [])
        scores = iter(zip(mse, mse if measure == "mse" else other))
        for result in results:
            if "error" not in result:
                plain, score = map(float, next(scores))
                result.update(
                    reconstruction_error=score, threshold=threshold, is_anomaly=score > threshold,
                    class_names=class_names, measure=measure, mse=plain,
                )
            yield result


def line(result):
    if "error" in result:
        return f"{result['file']}: cannot be judged: {result['error']}"
    verdict = "ANOMALY" if result["is_anomaly"] else "normal"
    return f"{result['file']}: {verdict} (error {result['reconstruction_error']:.6f}, threshold {result['threshold']:.6f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image, a folder or a pattern")
    parser.add_argument("--model", default=str(Path(__file__).with_name("autoencoder.onnx")), help="autoencoder.onnx, or a .pt whose anomaly score is the mean squared error")
    parser.add_argument("--metadata", help="a metadata.json that replaces the model's metadata")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    arguments = parser.parse_args()
    paths = list(find(arguments.images))
    if not paths:
        print("no images in " + ", ".join(arguments.images), file=sys.stderr)
    results = []
    using = arguments.model
    try:
        model = load(arguments.model)
        metadata = model.metadata
        if arguments.metadata:
            using = arguments.metadata
            metadata = json.loads(Path(arguments.metadata).read_text(encoding="utf-8"))
        if metadata is None:
            raise Problem("it has no metadata: pass its metadata.json with --metadata")
        measure, threshold, class_names = decision_of(metadata, model.other_measure)
        using = arguments.model
        for result in judge(model, measure, threshold, class_names, paths):
            results.append(result)
            if not arguments.json:
                print(line(result), flush=True)
    except Exception as problem:
        print(f"{using}: {problem}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(results, indent=2))
    if not results or any("error" in r for r in results):
        return 2
    return 1 if any(r["is_anomaly"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
