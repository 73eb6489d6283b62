"""Holds a trained model against the programs that its files are made for.

    python bench/interop.py --anomaly bin/anomaly --model model.zip IMAGE|FOLDER...

autoencoder.pt must load in PyTorch with weights_only and fit the contract's class exactly;
autoencoder.onnx must pass ONNX's full check and shape inference; and the reconstruction
errors of PyTorch, ONNX Runtime for Python and `anomaly detect --json` must agree. Prints the
largest relative differences and fails where one is above its bound: 1e-5 where both sides are
given the same numbers, 5e-3 where each reads the JPEG by itself.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnx
import onnxruntime
import torch

from peer_train import Autoencoder, find_images, load_image

SAME_TENSOR = 1e-5
FROM_FILE = 5e-3


class Report:
    def __init__(self):
        self.failed = False

    def line(self, what, ok, detail):
        self.failed |= not ok
        print(f"  {'ok  ' if ok else 'FAIL'}  {what:<62} {detail}")

    def difference(self, what, a, b, bound):
        """Holds a against b, image by image; pixels are held against their image's largest."""
        a, b = np.asarray(a, np.float64).reshape(len(a), -1), np.asarray(b, np.float64).reshape(len(b), -1)
        worst = float(np.max(np.abs(a - b) / np.maximum(np.abs(b).max(axis=1, keepdims=True), 1e-12)))
        # Written so that NaN fails.
        self.line(what, bool(worst <= bound), f"{worst:.2e} of {bound:.0e}")


def image_paths(arguments):
    paths = []
    for a in arguments:
        paths += find_images(a) if os.path.isdir(a) else [a]
    return paths


def detect(anomaly, model, paths):
    """Scores by the command line, in the order of paths."""
    run = subprocess.run([anomaly, "detect", "--model", model, "--json", *paths], stdout=subprocess.PIPE, check=False)
    if run.returncode not in (0, 1):  # 1: some are anomalous
        sys.exit(f"{anomaly} detect ended with {run.returncode}")
    scores = {}
    for row in json.loads(run.stdout):
        if "error" in row:
            sys.exit(f"{anomaly} detect could not read {row['file']}: {row['error']}")
        # The plain error stands beside, where the model decides by another measure.
        scores[os.path.abspath(row["file"])] = row.get("mse", row["reconstruction_error"])
    return [scores[os.path.abspath(p)] for p in paths]


def lossless(paths, side, folder):
    """The images as the network takes them, in PNG files of that very size: to read those
    there is nothing to decode by choice and nothing to resize."""
    from PIL import Image
    made = []
    for i, path in enumerate(paths):
        pixels = (load_image(path, side).numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
        made.append(os.path.join(folder, f"{i:04d}.png"))
        Image.fromarray(pixels).save(made[-1])
    return made


def main():
    p = argparse.ArgumentParser(description="hold a trained model against PyTorch, ONNX and ONNX Runtime")
    p.add_argument("--anomaly", default="bin/anomaly")
    p.add_argument("--model", required=True, help="the zip that training gave")
    p.add_argument("images", nargs="+")
    a = p.parse_args()
    paths = image_paths(a.images)
    if not paths:
        p.error("no images there")
    with zipfile.ZipFile(a.model) as z:
        pt, onnx_bytes, metadata = z.read("autoencoder.pt"), z.read("autoencoder.onnx"), json.loads(z.read("metadata.json"))
    torch.set_num_threads(2)
    report = Report()
    print(f"{a.model}: torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, {len(paths)} images")

    loaded = torch.load(io.BytesIO(pt), map_location="cpu", weights_only=True)
    network = Autoencoder()
    network.load_state_dict(loaded["model_state_dict"], strict=True)
    network.eval()
    side = loaded["config"]["image_size"]
    report.line("autoencoder.pt: weights_only, strict load_state_dict", True, f"{len(loaded['model_state_dict'])} tensors")
    report.line("image_size: autoencoder.pt and metadata.json agree", side == metadata["image_size"], f"{side}, {metadata['image_size']}")

    proto = onnx.load_model_from_string(onnx_bytes)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    shapes = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in inferred.graph.output}
    report.line("autoencoder.onnx: full check, strict shape inference", True, str(shapes))
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])

    x = torch.stack([load_image(path, side) for path in paths])
    with torch.no_grad():
        parts = [network(b) for b in x.split(16)]
    y = torch.cat(parts)
    by_torch = ((y.double() - x.double()) ** 2).mean(dim=(1, 2, 3)).numpy()
    runs = [session.run(["reconstruction", "reconstruction_error"], {"image": b.numpy()}) for b in x.split(16)]
    reconstructed = np.concatenate([r[0] for r in runs])
    by_onnx = np.concatenate([np.reshape(r[1], -1) for r in runs])
    single = np.concatenate([np.reshape(session.run(["reconstruction_error"], {"image": b.numpy()})[0], -1) for b in x.split(1)])

    report.difference("reconstruction (of its largest pixel), ONNX Runtime, PyTorch", reconstructed, y.numpy(), SAME_TENSOR)
    report.difference("error of a tensor, ONNX Runtime and PyTorch", by_onnx, by_torch, SAME_TENSOR)
    report.difference("error of a tensor, alone and in a batch of 16", single, by_onnx, SAME_TENSOR)
    with tempfile.TemporaryDirectory() as folder:
        by_png = detect(a.anomaly, a.model, lossless(paths, side, folder))
    report.difference("error of a PNG of the network's size, anomaly and PyTorch", by_png, by_torch, SAME_TENSOR)
    by_file = detect(a.anomaly, a.model, paths)
    report.difference("error of the file, anomaly and PyTorch", by_file, by_torch, FROM_FILE)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
