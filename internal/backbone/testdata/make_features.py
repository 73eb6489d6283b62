"""Writes features.json: the features that PyTorch computes from one small image with the embedded weights.

Usage: python internal/backbone/testdata/make_features.py (PyTorch 2.15, numpy 2.4; CPU, one second).
The image is a pattern that the test also generates: 64×64 RGB pixels in 0…1, of sines and an edge. The computation
is in float64, to be exact enough as a reference. For each tap it writes the shape, the root mean square of all
values, and every STEP-th value.
"""
import json
import pathlib
import struct

import numpy as np
import torch
import torch.nn.functional as F

SIDE, STEP, TAPS = 64, 7, (2, 4, 10, 12)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # of the embedded blocks of EfficientNet-Lite0

here = pathlib.Path(__file__).parent
file = (here.parent / "efficientnet-lite0.safetensors").read_bytes()
(length,) = struct.unpack("<Q", file[:8])
header, data = json.loads(file[8 : 8 + length]), file[8 + length :]


def tensor(name):
    entry = header[name]
    begin, end = entry["data_offsets"]
    array = np.frombuffer(data[begin:end], {"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
    return torch.from_numpy(array.astype(np.float64).reshape(entry["shape"]))


def convolve(x, name, stride=1, groups=1):
    weight = tensor(name + ".weight")
    zeros = max(weight.shape[-1] - stride, 0)
    before, after = zeros // 2, zeros - zeros // 2
    x = F.pad(x, (before, after, before, after))
    return F.conv2d(x, weight, tensor(name + ".bias"), stride, groups=groups)


def image():
    channel, row, col = np.meshgrid(range(3), range(SIDE), range(SIDE), indexing="ij")
    x = 0.5 + 0.3 * np.sin(0.2 * row + channel) * np.cos(0.13 * col) + np.where(row + 2 * col > 90, 0.15, -0.15)
    return torch.from_numpy(x.astype(np.float32).astype(np.float64))[None]


x = F.relu6(convolve((image() - 0.498) / 0.502, "stem", 2))
out = []
for i, stride in enumerate(STRIDES):
    y, name = x, f"blocks.{i}."
    if name + "expand.weight" in header:
        y = F.relu6(convolve(y, name + "expand"))
    y = F.relu6(convolve(y, name + "depthwise", stride, y.shape[1]))
    y = convolve(y, name + "project")
    x = x + y if stride == 1 and x.shape == y.shape else y
    if i in TAPS:
        flat = x.numpy().ravel()
        rms = float(np.sqrt((flat**2).mean()))
        out.append({"block": i, "shape": list(x.shape), "rms": rms, "every": STEP, "values": [round(float(v), 8) for v in flat[::STEP]]})
(here / "features.json").write_text(json.dumps(out) + "\n")
