"""The runner of OpenCV DNN."""

import cv2
import numpy as np

from case import answer


def of_tensors(case):
    net = cv2.dnn.readNetFromONNX(case.path("autoencoder.onnx"))
    errors = []
    for x in case.batches():
        net.setInput(np.ascontiguousarray(x), "image")
        errors += net.forward("reconstruction_error").ravel().tolist()
    return {"tensor": errors}


def of_images(case):
    net = cv2.dnn.readNetFromONNX(case.path("autoencoder_image.onnx"))
    names = net.getUnconnectedOutLayersNames()
    errors, verdicts = [], []
    for p in case.pixels():
        net.setInput(np.ascontiguousarray(p), "image")
        # OpenCV 5 requires the names of all outputs if there are several.
        answers = dict(zip(names, net.forward(names)))
        error, verdict = answers["reconstruction_error"], answers["is_anomaly"]
        errors.append(float(error.ravel()[0]))
        verdicts.append(bool(verdict.ravel()[0]))
    return {"image": errors, "anomalous": verdicts}


cv2.setNumThreads(2)
answer(cv2.__version__, {"tensor": of_tensors, "image": of_images})
