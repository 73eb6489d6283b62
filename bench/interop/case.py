"""The input and output of a runner.

A runner is a program whose argument is a folder, a case:

    autoencoder.pt, autoencoder.onnx, autoencoder_image.onnx
                   the model's files; the last one is optional
    predict.py     the program in the model's ZIP
    written.pt     the file that the model was converted from, if any
    inputs.json    {"image_size": S, "width": W, "height": H, "tensors": N, "images": [{"file", "height", "width"}]}
    tensors.f32    N x 3 x H x W little-endian float32: input of autoencoder.onnx
    pixels.rgb     height x width x 3 bytes of each image, concatenated: input of
                   autoencoder_image.onnx

It prints one JSON object, {"version", "tensor", "image", "anomalous", "problems"}: the
reconstruction errors of the tensors and of the images, the verdicts on the images, and the reason
for each missing part by its name. Runners in Python share this module, which only needs NumPy.
"""

import json
import os
import sys

import numpy as np

# The batch size of runners; the last batch is smaller.
BATCH = 16


class Case:
    def __init__(self, folder):
        self.folder = folder
        with open(self.path("inputs.json")) as f:
            inputs = json.load(f)
        self.side, self.images = inputs["image_size"], inputs["images"]  # a side of 0: not square
        self.width, self.height = inputs["width"], inputs["height"]
        self.tensors = np.fromfile(self.path("tensors.f32"), "<f4").reshape(-1, 3, self.height, self.width)

    def path(self, name):
        return os.path.join(self.folder, name)

    def has(self, name):
        return os.path.exists(self.path(name))

    def batches(self):
        for i in range(0, len(self.tensors), BATCH):
            yield self.tensors[i:i + BATCH]

    def pixels(self):
        """Yields each image as height x width x 3 bytes."""
        everything, at = np.fromfile(self.path("pixels.rgb"), np.uint8), 0
        for image in self.images:
            size = image["height"] * image["width"] * 3
            yield everything[at:at + size].reshape(image["height"], image["width"], 3)
            at += size


def answer(version, parts):
    """Prints the results of the functions in parts, by name. The reason of a failure goes to
    "problems", in one line."""
    result = {"version": version, "problems": {}}
    for name, compute in parts.items():
        try:
            result.update(compute(Case(sys.argv[1])))
        except Exception as problem:
            result["problems"][name] = " ".join(f"{type(problem).__name__}: {problem}".split())
    json.dump(result, sys.stdout)
