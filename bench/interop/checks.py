"""Checks of a model's files: autoencoder.pt loads in PyTorch with weights_only and matches the
contract's class exactly; the .onnx files pass ONNX's full check and strict shape inference; their
reconstruction equals PyTorch's; an image has the same error alone and in a batch."""

import json
import os
import sys

import numpy as np
import onnx
import onnxruntime
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from case import BATCH, Case
from peer_train import Autoencoder


def difference(a, b, least=1e-12):
    """Returns the largest difference of a from b, relative to the largest element of each row, or to
    least (a number, or one for each row) where that is larger; NaN if there is one."""
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    least = np.broadcast_to(np.asarray(least, np.float64).reshape(-1, 1), (len(b), 1))
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b).max(axis=1, keepdims=True), least)))


def checks(folder, bound):
    """Yields (name, passed, detail) of each check of the case in folder."""
    case = Case(folder)
    loaded = torch.load(case.path("autoencoder.pt"), map_location="cpu", weights_only=True)
    network = Autoencoder()
    network.load_state_dict(loaded["model_state_dict"], strict=True)
    network.eval()
    yield "autoencoder.pt: weights_only, strict load_state_dict", True, f"{len(loaded['model_state_dict'])} tensors"
    with open(case.path("metadata.json")) as f:
        sides = loaded["config"]["image_size"], json.load(f)["image_size"]
    yield "image_size: autoencoder.pt and metadata.json agree", sides[0] == sides[1] == case.side, "{}, {}".format(*sides)

    for name in ("autoencoder.onnx", "autoencoder_image.onnx"):
        proto = onnx.load_model(case.path(name))
        onnx.checker.check_model(proto, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        shapes = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in inferred.graph.output}
        yield f"{name}: full check, strict shape inference", True, str(shapes)

    session = onnxruntime.InferenceSession(case.path("autoencoder.onnx"), providers=["CPUExecutionProvider"])
    x = case.tensors[:BATCH]
    with torch.no_grad():
        by_torch = network(torch.from_numpy(x)).numpy()
    rebuilt, together = session.run(["reconstruction", "reconstruction_error"], {"image": x})
    alone = [session.run(["reconstruction_error"], {"image": x[i:i + 1]})[0] for i in range(len(x))]
    for what, d in (
        ("reconstruction (of its largest pixel), ONNX Runtime and PyTorch", difference(rebuilt, by_torch)),
        (f"error of a tensor, alone and in a batch of {len(x)}", difference(alone, together)),
    ):
        yield what, bool(d <= bound), f"{d:.1e} of {bound:.0e}"
