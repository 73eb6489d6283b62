#!/usr/bin/env python3
"""Judges images with the model beside this file: is each normal, or an anomaly?

    python predict.py photo.jpg folder/ "more/**/*.png"
    python predict.py folder/ --json > verdicts.json
    python predict.py folder/ --model autoencoder.pt      # by PyTorch, where it is installed

A folder stands for the images in it and below; so does a pattern in quotes, in which **
stands for any folders. Needs onnxruntime, Pillow and numpy (requirements.txt). Exit status:
0 all normal, 1 some anomalous, 2 an image or the model could not be read.
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
BATCH = 8  # images that the network sees at once

# measure gives, of each of N×3×size×size images, the plain mean squared error and, as
# another, what the measure that is named another gives; None where there is no other.
Model = collections.namedtuple("Model", "measure size metadata another")


class Problem(Exception):
    """What is wrong with the model or its metadata, and what to do, in a sentence."""


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
        raise Problem("it takes or gives something else than autoencoder.onnx does; use that file")
    about = session.get_modelmeta().custom_metadata_map
    text = about.get("metadata_json")
    another = about.get("measure") if "mse" in [o.name for o in session.get_outputs()] else None

    def measure(images):
        if another is None:
            return session.run(["reconstruction_error"], {"image": images})[0], None
        return session.run(["mse", "reconstruction_error"], {"image": images})

    return Model(measure, image.shape[2], json.loads(text) if text else None, another)


def load_checkpoint(path):
    try:
        import torch
        from torch import nn
    except ImportError:
        raise Problem("PyTorch is not installed: pip install torch, or use autoencoder.onnx, which does not need it")
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
    else:  # a checkpoint that carries no decision is judged as the service judges it
        metadata = {"threshold": float(config.get("threshold", 0.02)), "class_names": config.get("class_names")}

    normal = checkpoint.get("normality_state_dict")
    distance = band_mahalanobis(torch, normal, config["image_size"]) if normal else lambda images: None

    def measure(images):
        images = torch.from_numpy(images)
        with torch.no_grad():
            return ((network(images) - images) ** 2).mean(dim=(1, 2, 3)).numpy(), distance(images)

    return Model(measure, config["image_size"], metadata, "band_mahalanobis" if normal else None)


def band_mahalanobis(torch, normal, size):
    """How far the places of an image are from those of normal images, as autoencoder.onnx has it."""
    pool, pad = torch.nn.functional.max_pool2d, torch.nn.functional.pad
    mean_pool, slide = torch.nn.functional.avg_pool2d, torch.nn.functional.conv2d
    y, x = np.mgrid[-3:4, -3:4].astype(np.float64)

    def kernels(*waves):
        return torch.from_numpy(np.stack([w / np.sqrt((w ** 2).sum()) for w in waves]).astype(np.float32))[:, None]

    def gabor(i, wave):
        across, along = (f(math.pi * i / 8) for f in (math.cos, math.sin))
        u, v = x * across + y * along, y * across - x * along
        envelope = np.exp(-u ** 2 / (2 * 1.2 ** 2) - v ** 2 / (2 * 2.0 ** 2))
        filtered = envelope * wave(1.8 * u)
        return filtered - envelope * filtered.sum() / envelope.sum()

    def bell(deviation):
        b = np.exp(-(x ** 2 + y ** 2) / (2 * deviation ** 2))
        return b / b.sum()

    even, odd = (kernels(*(gabor(i, wave) for i in range(8))) for wave in (np.cos, np.sin))
    spot = kernels(*[bell(1.0) - bell(2.2)] * 2)
    scales = sorted({int(name.split(".")[1]) for name in normal if not name.startswith("normality.marker.")}, reverse=True)
    marked = scales[:3] if "normality.marker.offset" in normal else []  # the scales that the marker sees

    def level(grey, colour):
        wide, spots = pad(grey, (3,) * 4, mode="replicate"), pad(colour, (3,) * 4, mode="replicate")
        oriented = (slide(wide, even) ** 2 + slide(wide, odd) ** 2 + 1e-6).sqrt()
        return torch.cat([oriented, (slide(spots, spot, groups=2) ** 2 + 1e-6).sqrt()], 1)

    def marker(seen):
        """How much like a defect each place looks, by the sum of both networks."""
        places = [torch.nn.functional.interpolate(x, seen[0].shape[2:], mode="bilinear", align_corners=False) for x in seen]
        logits = []
        for k in range(2):
            x = torch.cat(places, 1)
            for layer in range(5):
                weight, bias = (normal[f"normality.marker.{k}.{layer}.{what}"] for what in ("weight", "bias"))
                x = slide(x if layer == 0 else x.relu(), weight, bias, padding=weight.shape[2] // 2)
            logits.append(x)
        return logits[0] + logits[1]

    def score(images):
        red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
        grey = torch.log1p((red + green + blue) / 3 / 0.1) / math.log1p(1 / 0.1)
        colour = torch.cat([red - blue, green - (red + blue) / 2], 1)
        flat, bands = [(grey, colour)], []
        deviations, inputs = [], []
        for places in scales:
            mean, precision, whitening, offset, slope = (
                normal[f"normality.{places}.{what}"] for what in ("mean", "precision", "whitening", "offset", "slope"))
            cell, count = size // places, (len(mean) - 3) // 10
            halvings = (cell & -cell).bit_length() - 1
            first = min(max(cell.bit_length() - 4, 0), halvings)
            seen = []
            for n in range(first, first + count):
                while len(bands) <= n:
                    if len(flat) <= len(bands):
                        flat.append(tuple(mean_pool(f, 2) for f in flat[-1]))
                    bands.append(level(*flat[len(bands)]))
                seen.append((pool(bands[n], cell >> n) + 0.04).log())
            features = torch.cat([*seen, mean_pool(grey, cell), mean_pool(colour, cell)], 1)
            if places > 2:
                features = features - features.mean(dim=(2, 3), keepdim=True)
            blocks = math.isqrt(len(whitening))
            k = places // blocks
            standard = (features - mean) * precision
            if places in marked:
                inputs += [features, standard.clamp(-8, 8) / 2]
            sorted_ = standard.reshape(len(images), len(mean), blocks, k, blocks, k)
            sorted_ = sorted_.permute(0, 2, 4, 1, 3, 5).reshape(len(images), blocks ** 2, len(mean), k * k)
            highest = ((whitening @ sorted_) ** 2).sum(dim=2).amax(dim=(1, 2))
            deviations.append(((highest + 0.04).log() - offset) * slope)
        if marked:
            offset, slope = normal["normality.marker.offset"], normal["normality.marker.slope"]
            deviations.append((marker(inputs).amax(dim=(1, 2, 3)) - offset) * slope)
        smooth = torch.logsumexp(2 * torch.stack(deviations), 0) / 2
        return torch.nn.functional.softplus(smooth, threshold=50).numpy()

    return score


def settle(metadata, another):
    """The measure, the threshold and the class names that a metadata.json stands for."""
    if not isinstance(metadata, dict):
        raise Problem("it is not a metadata.json")
    if metadata.get("model_type") not in (None, "", "autoencoder"):
        raise Problem(f"it is the metadata of a {metadata['model_type']}, not of an autoencoder")
    decision = metadata.get("decision")
    if decision is None:
        decision = {"measure": "mse", "threshold": metadata.get("threshold")}
    if decision.get("measure") not in ("mse", another):
        raise Problem(f"the model decides by {decision.get('measure')}, which this file does not give; use the autoencoder.onnx of the same training")
    for threshold in metadata.get("threshold"), decision.get("threshold"):
        if not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
            raise Problem(f"the threshold is {threshold}, expected a number of 0 or more")
    return decision["measure"], decision["threshold"], metadata.get("class_names") or ["normal", "anomaly"]


def find(arguments):
    """The images that the arguments name. What is not there stays, for an error of its own."""
    for argument in arguments:
        if Path(argument).is_dir():
            yield from below(argument)
        elif Path(argument).exists() or not any(c in argument for c in "*?["):
            yield argument
        else:
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))
            found = [p for m in matches for p in (below(m) if m.is_dir() else [str(m)] if is_image(m) else [])]
            yield from dict.fromkeys(found or [argument])  # each once


def below(folder):
    return [str(p) for p in sorted(Path(folder).rglob("*")) if is_image(p) and not p.is_dir()]


def is_image(path):
    return path.suffix.lower() in ENDINGS


def prepare(path, size):
    """The image as the network was trained on it: 3×size×size, in 0…1."""
    with Image.open(path) as image:
        image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


def judge(model, measure, threshold, class_names, paths):
    """The verdict on each image, with the keys of the service's answer."""
    for start in range(0, len(paths), BATCH):
        results, tensors = [], []
        for path in paths[start:start + BATCH]:
            results.append({"file": path})
            try:
                tensors.append(prepare(path, model.size))
            except Exception as problem:  # Pillow's errors are of many kinds
                results[-1]["error"] = str(problem) or repr(problem)
        mse, other = model.measure(np.stack(tensors)) if tensors else ([], [])
        figures = iter(zip(mse, mse if measure == "mse" else other))
        for result in results:
            if "error" not in result:
                plain, figure = map(float, next(figures))
                result.update(
                    reconstruction_error=figure, threshold=threshold, is_anomaly=figure > threshold,
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
    parser.add_argument("--model", default=str(Path(__file__).with_name("autoencoder.onnx")), help="autoencoder.onnx or autoencoder.pt")
    parser.add_argument("--metadata", help="a metadata.json that counts instead of the model's own, as a whole")
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
            raise Problem("it holds no metadata: name its metadata.json with --metadata")
        measure, threshold, class_names = settle(metadata, model.another)
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
