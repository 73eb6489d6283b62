"""The runner of the predict.py that lies in a model's zip, with autoencoder.pt: what PyTorch
computes there is the network's own error, also of a model that decides by another measure."""

import sys

import PIL
import torch

from case import answer


def loaded(case):
    """predict.py of the case as a module, and the model as it has loaded it."""
    sys.path.insert(0, case.folder)
    import predict

    return predict, predict.load(case.path("autoencoder.pt"))


def errors(model, batches):
    """The mean squared error of each image of the batches."""
    return [float(e) for x in batches for e in model.measure(x)[0]]


def of_tensors(case):
    _, model = loaded(case)
    return {"tensor": errors(model, case.batches())}


def of_images(case):
    if int(PIL.__version__.split(".")[0]) < 13:
        return {}  # it resizes otherwise, which torch_errors.py shows
    predict, model = loaded(case)
    return {"image": errors(model, (predict.prepare(i["file"], model.size)[None] for i in case.images))}


torch.set_num_threads(2)
answer(f"{torch.__version__} (Pillow {PIL.__version__})", {"tensor": of_tensors, "image": of_images})
