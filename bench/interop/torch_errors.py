"""The runner of all versions of PyTorch: the contract's class with the weights of autoencoder.pt, and
Pillow for reading and resizing.

bin/anomaly resizes like Pillow 13, which resizes the height first if that removes more than twice
as many pixels as the width. Older versions always resize the width first, and round to bytes in
between. To compare PyTorch on the same pixels, the height is resized explicitly here; the results
with Pillow's own order are in "older"."""

import os
import sys

import PIL
import torch
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from case import answer
from peer_train import Autoencoder, load_image, tensor


def network(path):
    network = Autoencoder()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"], strict=True)
    return network.eval()


def errors(network, x):
    with torch.no_grad():
        difference = network(x).double() - x.double()
    return (difference ** 2).mean(dim=(1, 2, 3)).tolist()


def of_tensors(case, weights):
    loaded = network(case.path(weights))
    return [e for x in case.batches() for e in errors(loaded, torch.from_numpy(x))]


def height_first(path, side):
    """load_image, with the height resized before the width where Pillow 13 does so."""
    with Image.open(path) as image:
        width, height = image.size
        if height > side and height - side > 2 * (width - side):
            image = image.convert("RGB").resize((width, side), Image.BILINEAR)
        return tensor(image, side)


def of_images(case):
    if not case.side:
        return {"no image": "the Python service, whose preparation is repeated here, has square inputs only"}
    loaded = network(case.path("autoencoder.pt"))

    def by(load):
        return [errors(loaded, load(i["file"], case.side)[None])[0] for i in case.images]

    if int(PIL.__version__.split(".")[0]) >= 13:
        return {"image": by(load_image)}
    return {"image": by(height_first), "older": by(load_image)}


torch.set_num_threads(2)
answer(f"{torch.__version__} (Pillow {PIL.__version__})", {
    "tensor": lambda case: {"tensor": of_tensors(case, "autoencoder.pt")},
    "written": lambda case: {"written": of_tensors(case, "written.pt")} if case.has("written.pt") else {},
    "image": of_images,
})
