"""The models and images for the comparison of runtimes: see case.py for a case's files."""

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image

SEED = 20
IMAGES = 50


class Anomaly:
    """bin/anomaly, whose results are the reference."""

    def __init__(self, program):
        self.program = program

    def __call__(self, *arguments):
        run = subprocess.run([self.program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if run.returncode not in (0, 1):  # detect, 1: some are anomalous
            sys.exit(f"{self.program} {arguments[0]} ended with {run.returncode}: {run.stderr.strip()}")
        return run.stdout

    def detect(self, model, paths):
        """Returns (reconstruction_error, threshold, mse) of each file, in the order of paths."""
        scores = {}
        for row in json.loads(self("detect", "--threads", "2", "--json", "--model", model, *paths)):
            if "error" in row:
                sys.exit(f"{self.program} detect could not read {row['file']}: {row['error']}")
            scores[os.path.abspath(row["file"])] = row["reconstruction_error"], row["threshold"], row["mse"]
        return [scores[os.path.abspath(p)] for p in paths]


class Model:
    """A case's folder, and bin/anomaly's results for its images. heads: whether the model must have
    defect heads, so that their operators are covered."""

    def __init__(self, name, folder, zipped, anomaly, photos, written=None, writer=None, heads=False):
        self.name, self.folder, self.zip, self.writer = name, folder, zipped, writer
        with zipfile.ZipFile(zipped) as z:
            for member in ("autoencoder.pt", "autoencoder.onnx", "autoencoder_image.onnx", "metadata.json", "predict.py"):
                if member in z.namelist():
                    z.extract(member, folder)
        with open(os.path.join(folder, "metadata.json")) as f:
            metadata = json.load(f)
        self.side, how = metadata["image_size"], metadata["preprocessing"] if "preprocessing" in metadata else {}
        self.size = (self.side or how["width"], self.side or how["height"])
        self.heads = (metadata.get("training") or {}).get("head_steps", 0) > 0
        if self.heads != heads:
            sys.exit(f"the model {name} {'has' if self.heads else 'has no'} heads, expected otherwise")
        self.fitting = [fitting(p, self.size, os.path.join(folder, "fitting")) for p in photos.tinted]
        tensors = np.stack([np.asarray(Image.open(p), np.float32).transpose(2, 0, 1) for p in self.fitting]) / np.float32(255)
        tensors.astype("<f4").tofile(os.path.join(folder, "tensors.f32"))
        images = []
        with open(os.path.join(folder, "pixels.rgb"), "wb") as f:
            for path in photos.png + photos.jpeg:
                with Image.open(path) as image:
                    images.append({"file": os.path.abspath(path), "height": image.height, "width": image.width})
                    f.write(image.convert("RGB").tobytes())
        with open(os.path.join(folder, "inputs.json"), "w") as f:
            json.dump({"image_size": self.side, "width": self.size[0], "height": self.size[1], "tensors": len(tensors), "images": images}, f)
        self.tensor = anomaly.detect(zipped, self.fitting)
        self.png = anomaly.detect(zipped, photos.png)
        self.jpeg = anomaly.detect(zipped, photos.jpeg)
        self.decoded = anomaly.detect(zipped, photos.decoded)
        self.written = None
        if written:
            shutil.copy(written, os.path.join(folder, "written.pt"))
            self.written = anomaly.detect(written, self.fitting)


def fitting(path, size, folder):
    """Writes the image as a PNG of the network's size: decoding is exact and nothing is resized, so
    bin/anomaly's input equals the tensor of its pixels."""
    os.makedirs(folder, exist_ok=True)
    made = os.path.join(folder, os.path.basename(path))
    with Image.open(path) as image:
        image.resize(size, Image.BILINEAR).save(made)
    return made


class Photos:
    """The tiles as JPEG files, every other one unchanged, and parts of them as PNG files of odd sizes.
    The tiles are grey, which would hide a wrong channel order, so the PNG files and half of the JPEG
    files are tinted."""

    def __init__(self, tiles, folder):
        self.jpeg, self.decoded, self.png, self.tinted = [], [], [], []
        random_ = random.Random(SEED)
        os.makedirs(folder)
        for i, path in enumerate(tiles):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"), np.float64)
            gains = [random_.uniform(0.5, 1.2) for _ in range(3)]
            tinted = Image.fromarray((pixels * gains).clip(0, 255).round().astype(np.uint8))
            self.tinted.append(os.path.join(folder, f"{i:02d}-tinted.png"))
            tinted.save(self.tinted[-1])
            self.jpeg.append(path)
            if i % 2:
                self.jpeg[-1] = os.path.join(folder, f"{i:02d}-tinted.jpg")
                tinted.save(self.jpeg[-1], quality=85)
            # The pixels that Pillow decodes, to run bin/anomaly without its own JPEG decoder.
            self.decoded.append(os.path.join(folder, f"{i:02d}-decoded.png"))
            with Image.open(self.jpeg[-1]) as image:
                image.convert("RGB").save(self.decoded[-1])
            left, top = (random_.randrange(side // 3) for side in tinted.size)
            odd = tuple(random_.randrange(31, 502, 2) for _ in range(2))
            self.png.append(os.path.join(folder, f"{i:02d}-{odd[0]}x{odd[1]}.png"))
            tinted.crop((left, top, *tinted.size)).resize(odd, Image.BICUBIC).save(self.png[-1])


def spread(paths, n):
    """Returns n evenly spaced paths."""
    return [paths[i * len(paths) // n] for i in range(n)]


def make(folder, anomaly, tiles, tests, torches):
    """Returns all models: trained ones of three sizes, with defect heads and without, and one converted from
    a file by each Python in torches (name: path). tiles: training images, tests: further test images."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    photos = Photos((tests + spread(tiles, IMAGES))[:IMAGES], os.path.join(folder, "photos"))
    few = os.path.join(folder, "few")
    os.makedirs(few)
    for path in spread(tiles, 20):
        shutil.copy(path, few)

    def model(name, how, **more):
        at = os.path.join(folder, name.replace(",", "").replace(" ", "-"))
        os.makedirs(at)
        zipped = os.path.join(at, "model.zip")
        how(zipped)
        return Model(name, at, zipped, anomaly, photos, **more)

    def trained(data, level, side):
        return lambda zipped: anomaly("train", data, "--level", str(level), "--image-size", str(side), "--threads", "2", "--quiet", "--out", zipped)

    # Level 1 has no defect heads; other levels have them from 16 images on.
    models = [
        model("trained 128", trained(os.path.dirname(tiles[0]), 1, 128)),
        model("trained 128, heads", trained(few, 2, 128), heads=True),
        model("trained 256, heads", trained(few, 2, 256), heads=True),
        model("trained 192x96, heads", trained(few, 2, "192x96"), heads=True),
    ]
    for i, (name, python) in enumerate(torches.items()):
        written = os.path.join(folder, f"{name}.pt")
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_model.py")
        made = subprocess.run([python, script, written, "64", str(SEED + i)], check=True, stdout=subprocess.PIPE, text=True)
        models.append(model(f"{name} 64", lambda zipped: anomaly("convert", written, "--to", zipped),
                            written=written, writer=f"{name} {made.stdout.strip()}"))
    return models
