"""The runner of ONNX Runtime for Python."""

import onnxruntime

from case import answer


def session(case, name):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(case.path(name), options, providers=["CPUExecutionProvider"])


def of_tensors(case):
    run = session(case, "autoencoder.onnx").run
    return {"tensor": [e for x in case.batches() for e in run(["reconstruction_error"], {"image": x})[0].tolist()]}


def of_images(case):
    run = session(case, "autoencoder_image.onnx").run
    results = [run(["reconstruction_error", "is_anomaly"], {"image": p}) for p in case.pixels()]
    return {"image": [float(e[0]) for e, _ in results], "anomalous": [bool(a[0]) for _, a in results]}


answer(onnxruntime.__version__, {"tensor": of_tensors, "image": of_images})
