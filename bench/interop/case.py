"""What a runner is given, and what it answers.

A runner is a program that is called with one folder, a case:

    autoencoder.pt, autoencoder.onnx, autoencoder_image.onnx
                   the model's files, the last where the model has it
    predict.py     the program that is in the model's zip
    written.pt     the file that the model was converted from, where it was
    inputs.json    {"image_size": S, "tensors": N, "images": [{"file", "height", "width"}]}
    tensors.f32    N x 3 x S x S little-endian float32: what autoencoder.onnx takes
    pixels.rgb     height x width x 3 bytes of each image, one after the other: what
                   autoencoder_image.onnx takes

It prints one JSON object, {"version", "tensor", "image", "anomalous", "problems"}: the
reconstruction errors of the tensors and of the images, the verdicts on the images, and under
the name of what is missing why it is. Those in Python share the lines below; NumPy is all
that they need.
"""

import json
import os
import sys

import numpy as np

# Runners hand over this many tensors at once, so that the last batch is a smaller one.
BATCH = 16


class Case:
    def __init__(self, folder):
        self.folder = folder
        with open(self.path("inputs.json")) as f:
            inputs = json.load(f)
        self.side, self.images = inputs["image_size"], inputs["images"]
        self.tensors = np.fromfile(self.path("tensors.f32"), "<f4").reshape(-1, 3, self.side, self.side)

    def path(self, name):
        return os.path.join(self.folder, name)

    def has(self, name):
        return os.path.exists(self.path(name))

    def batches(self):
        for i in range(0, len(self.tensors), BATCH):
            yield self.tensors[i:i + BATCH]

    def pixels(self):
        """Each image as height x width x 3 bytes."""
        everything, at = np.fromfile(self.path("pixels.rgb"), np.uint8), 0
        for image in self.images:
            size = image["height"] * image["width"] * 3
            yield everything[at:at + size].reshape(image["height"], image["width"], 3)
            at += size


def answer(version, parts):
    """Prints what the functions of parts, by the name of what they give, have given. One that
    fails leaves its reason in one line and the others their turn."""
    result = {"version": version, "problems": {}}
    for name, compute in parts.items():
        try:
            result.update(compute(Case(sys.argv[1])))
        except Exception as problem:
            result["problems"][name] = " ".join(f"{type(problem).__name__}: {problem}".split())
    json.dump(result, sys.stdout)
