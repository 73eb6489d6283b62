"""The contract as a plain Flask and PyTorch service, as a baseline of the benchmark.

    python bench/peer_service.py [--port 5029]

It is written like such services usually are: Flask's threaded development server, uploads saved
to a folder, the recipe of peer_train.py, and the model loaded for each /detect. Do not expose it
to a network.
"""

import argparse
import io
import json
import os
import tempfile
import zipfile

import torch
from flask import Flask, jsonify, request, send_file

from peer_train import Autoencoder, checkpoint, find_images, load_image, train

app = Flask(__name__)
GENERIC = ["normal", "anomaly"]
DEFAULT_THRESHOLD = 0.02


def refuse(message, status=400):
    return jsonify(error=message), status


def integer_field(name, default):
    text = request.form.get(name, "")
    return int(text) if text else default


@app.get("/health")
def health():
    return jsonify(status="healthy", service="anomaly-detection-service")


@app.post("/train")
def train_endpoint():
    upload = request.files.get("zipFile")
    if upload is None:
        return refuse("No ZIP file uploaded")
    try:
        level, side = integer_field("level", 3), integer_field("image_size", 256)
    except ValueError:
        return refuse("level and image_size must be whole numbers")
    if not 1 <= level <= 5:
        return refuse("Level must be between 1 and 5")
    if side < 16 or side > 1024 or side % 16:
        return refuse("image_size must be a multiple of 16 from 16 to 1024")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(upload.stream) as z:
                z.extractall(folder)
        except zipfile.BadZipFile:
            return refuse("The uploaded file is not a ZIP archive")
        paths = find_images(folder)
        if not paths:
            return refuse("No image files found in the uploaded dataset")
        network, metadata = train(paths, level, side)

        metadata["class_names"] = GENERIC
        saved = io.BytesIO()
        torch.save(checkpoint(network, side), saved)
        onnx_path = os.path.join(folder, "autoencoder.onnx")
        exported = export_onnx(network, side, onnx_path)
        answer = io.BytesIO()
        with zipfile.ZipFile(answer, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("autoencoder.pt", saved.getvalue())
            if exported:
                z.write(onnx_path, "autoencoder.onnx")
            z.writestr("metadata.json", json.dumps(metadata, indent=2))
    answer.seek(0)
    return send_file(answer, mimetype="application/zip", as_attachment=True, download_name="anomaly_detection_model.zip")


def export_onnx(network, side, path):
    """Exports the network; returns whether it succeeded. The exporter needs packages that may be missing."""
    try:
        torch.onnx.export(network, torch.zeros(1, 3, side, side), path, dynamo=False,
                          input_names=["image"], output_names=["reconstruction"],
                          dynamic_axes={"image": {0: "n"}, "reconstruction": {0: "n"}})
    except Exception as e:  # the file is optional
        app.logger.warning("no ONNX file: %s", e)
        return False
    return True


@app.post("/detect")
def detect():
    model, image = request.files.get("modelFile"), request.files.get("imageFile")
    if model is None or image is None:
        return refuse("Both model file and image file are required")
    threshold, names = DEFAULT_THRESHOLD, GENERIC
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.pt")
        model.save(path)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            network = Autoencoder()
            network.load_state_dict(loaded["model_state_dict"])
        except Exception:
            return refuse("The model file can't be read")
    network.eval()
    if "metadataFile" in request.files:
        metadata = json.load(request.files["metadataFile"].stream)
        threshold, names = metadata.get("threshold", threshold), metadata.get("class_names", names)
    try:
        x = load_image(image.stream, loaded["config"]["image_size"])[None]
    except OSError:
        return refuse("The image file can't be read")
    with torch.no_grad():
        error = torch.nn.functional.mse_loss(network(x), x).item()
    return jsonify(reconstruction_error=error, threshold=threshold, is_anomaly=error > threshold, class_names=names)


def main():
    p = argparse.ArgumentParser(description="serve the contract with Flask and PyTorch")
    p.add_argument("--port", type=int, default=int(os.environ.get("PORT", "5029")))
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    app.run(host="127.0.0.1", port=a.port, threaded=True, debug=False)


if __name__ == "__main__":
    main()
