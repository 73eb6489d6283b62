"""The runner of the predict.py that lies in a model's zip, with autoencoder.pt: what PyTorch
computes there is all that the model decides by, markers too, and not the network alone."""

import sys

import PIL
import torch

from case import answer


def loaded(case):
    """predict.py of the case as a module, and the model as it has loaded it."""
    sys.path.insert(0, case.folder)
    import predict

    return predict, predict.load(case.path("autoencoder.pt"))


def figures(predict, model, batches):
    """What the model decides by, of each image of the batches, and the threshold."""
    measure, threshold, _ = predict.settle(model.metadata, model.another)
    both = (model.measure(x) for x in batches)
    return [float(e) for mse, other in both for e in (mse if measure == "mse" else other)], threshold


def of_tensors(case):
    return {"tensor": figures(*loaded(case), case.batches())[0]}


def of_images(case):
    if int(PIL.__version__.split(".")[0]) < 13:
        return {}  # it resizes otherwise, which torch_errors.py shows
    predict, model = loaded(case)
    errors, threshold = figures(predict, model, (predict.prepare(i["file"], model.size)[None] for i in case.images))
    return {"image": errors, "anomalous": [e > threshold for e in errors]}


torch.set_num_threads(2)
answer(f"{torch.__version__} (Pillow {PIL.__version__})", {"tensor": of_tensors, "image": of_images})
