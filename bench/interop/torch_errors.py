"""The runner of PyTorch, old and new: the contract's class with autoencoder.pt's weights, and
Pillow's reading and resizing."""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from case import answer
from peer_train import Autoencoder, load_image


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


def of_images(case):
    loaded = network(case.path("autoencoder.pt"))
    return [errors(loaded, load_image(i["file"], case.side)[None])[0] for i in case.images]


torch.set_num_threads(2)
answer(torch.__version__, {
    "tensor": lambda case: {"tensor": of_tensors(case, "autoencoder.pt")},
    "written": lambda case: {"written": of_tensors(case, "written.pt")} if case.has("written.pt") else {},
    "image": lambda case: {"image": of_images(case)},
})
