"""Measures PyTorch's forward pass of the backbone, with the embedded weights.

    echo "256 channels_last 2 20" | python bench/peer_backbone.py

Each input line has a side, a memory layout, a number of threads and a number of forward passes of one
image. The answer is a JSON object with the milliseconds of the median pass. BatchNorm is folded into the
convolutions, and padding is TensorFlow's SAME.
"""

import json
import pathlib
import statistics
import struct
import sys
import time

import torch
from torch import nn

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # of the embedded blocks of EfficientNet-Lite0
TAPS = (4, 10, 12)


def weights(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, data = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    types = {"F16": torch.float16, "F32": torch.float32}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        yield name, torch.frombuffer(bytearray(data[begin:end]), dtype=types[entry["dtype"]]).float().reshape(entry["shape"])


def convolution(tensors, name, stride=1, depthwise=False, relu6=True):
    weight, bias = tensors[name + ".weight"], tensors[name + ".bias"]
    out, kernel = weight.shape[0], weight.shape[-1]
    layer = nn.Conv2d(out if depthwise else weight.shape[1], out, kernel, stride, groups=out if depthwise else 1)
    layer.weight.data, layer.bias.data = weight, bias
    zeros = max(kernel - stride, 0)
    before, after = zeros // 2, zeros - zeros // 2
    if before == after:
        layer.padding = (before, before)
        layers = [layer]
    else:
        layers = [nn.ZeroPad2d((before, after, before, after)), layer]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if relu6 else nn.Sequential(*layers)


class Block(nn.Module):
    def __init__(self, tensors, name, stride):
        super().__init__()
        layers = [convolution(tensors, name + "expand")] if name + "expand.weight" in tensors else []
        layers += [convolution(tensors, name + "depthwise", stride, True), convolution(tensors, name + "project", relu6=False)]
        self.layers = nn.Sequential(*layers)
        first = name + ("expand.weight" if name + "expand.weight" in tensors else "depthwise.weight")
        channels = tensors[first].shape[1] if "expand" in first else tensors[first].shape[0]
        self.residual = stride == 1 and channels == tensors[name + "project.weight"].shape[0]

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.residual else y


class Backbone(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        self.stem = convolution(tensors, "stem", 2)
        self.blocks = nn.ModuleList(Block(tensors, f"blocks.{i}.", s) for i, s in enumerate(STRIDES))

    def forward(self, x):
        x = self.stem((x - 0.498) / 0.502)
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                features.append(x)
        return features


def main():
    path = pathlib.Path(__file__).parents[1] / "internal/backbone/efficientnet-lite0.safetensors"
    network = Backbone(dict(weights(path))).eval()
    for line in sys.stdin:
        side, layout, threads, passes = line.split()
        torch.set_num_threads(int(threads))
        network.to(memory_format=LAYOUTS[layout])
        x = torch.rand(1, 3, int(side), int(side)).to(memory_format=LAYOUTS[layout])
        times = []
        with torch.inference_mode():
            for i in range(int(passes) + 2):
                began = time.perf_counter()
                network(x)
                if i > 1:
                    times.append((time.perf_counter() - began) * 1e3)
        print(json.dumps({"ms": statistics.median(times)}), flush=True)


if __name__ == "__main__":
    main()
