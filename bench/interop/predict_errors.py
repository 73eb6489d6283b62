"""The runner of predict.py from a model's ZIP, with autoencoder.pt. It computes the mean squared
error, also for models with another anomaly score."""

import sys

import PIL
import torch

from case import answer


def loaded(case):
    """Returns predict.py of the case as a module, and the model that it loaded."""
    sys.path.insert(0, case.folder)
    import predict

    return predict, predict.load(case.path("autoencoder.pt"))


def errors(model, batches):
    """Returns the mean squared error of each image of the batches."""
    return [float(e) for x in batches for e in model.measure(x, False)[0]]


def of_tensors(case):
    _, model = loaded(case)
    return {"tensor": errors(model, case.batches())}


def of_images(case):
    if int(PIL.__version__.split(".")[0]) < 13:
        return {}  # it resizes differently, see torch_errors.py
    predict, model = loaded(case)
    preprocessing = model.metadata.get("preprocessing") or {}
    return {"image": errors(model, (predict.prepare(i["file"], model.size, preprocessing)[0][None] for i in case.images))}


torch.set_num_threads(2)
answer(f"{torch.__version__} (Pillow {PIL.__version__})", {"tensor": of_tensors, "image": of_images})
