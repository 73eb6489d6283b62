"""Makes the checkpoints in testdata/golden/checkpoints, which package models is tested on.

Run from the root of the repository, with PyTorch, NumPy, onnx and onnxscript 0.7.2 on the path:

    python testdata/golden/make_checkpoints.py

The files that are committed were made with Python 3.11 and PyTorch 2.15.0. The network is
the Python service's with narrow layers (3-4-8-12-16), so that the files stay small, and its
weights are random under a fixed seed: nothing in them comes from anybody's data.
expected.json holds, for each file that must be read, a sum and a few elements of each tensor.
"""

import collections
import json
import os
import warnings

import torch
import torch.nn as nn

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints")
CHANNELS = [3, 4, 8, 12, 16]
IMAGE_SIZE = 64


class Autoencoder(nn.Module):
    """The network of the Python service."""

    def __init__(self, channels=CHANNELS):
        super().__init__()
        encoder, decoder = [], []
        for a, b in zip(channels, channels[1:]):
            encoder += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()]
        back = channels[::-1]
        for a, b in zip(back, back[1:]):
            decoder += [nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), nn.ReLU()]
        decoder[-1] = nn.Sigmoid()
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Judge(nn.Module):
    """The network with the error of each image behind it."""

    def __init__(self, network):
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder

    def forward(self, x):
        y = self.decoder(self.encoder(x))
        return y, ((y - x) ** 2).mean(dim=(1, 2, 3))


expected = {}


def expect(name, state, image_size=IMAGE_SIZE, **more):
    tensors = {}
    for key, t in state.items():
        t = t.detach().float()
        flat = t.reshape(-1)
        at = sorted({0, 1 % flat.numel(), flat.numel() // 2, flat.numel() - 1})
        tensors[key] = {
            "shape": list(t.shape),
            "sum": flat.double().sum().item(),
            "elements": {str(i): flat[i].item() for i in at},
        }
    expected[name] = {"image_size": image_size, **more, "tensors": tensors}


def path(name):
    return os.path.join(OUT, name)


def save(name, state, config=None, more=None, **options):
    config = config or {"image_size": IMAGE_SIZE, "input_channels": 3}
    torch.save({"model_state_dict": state, "config": config, **(more or {})}, path(name), **options)
    expect(name, state)


def convert(state, f):
    return collections.OrderedDict((k, f(v)) for k, v in state.items())


def transposed(t):
    """The same values on a storage whose order is that of the reversed dimensions."""
    back = list(range(t.dim()))[::-1]
    return t.permute(back).contiguous().permute(back)


def views(state):
    """Every tensor as a view of one storage that starts with a few elements of nobody's."""
    flat = torch.cat([torch.full((7,), 9.0)] + [t.reshape(-1) for t in state.values()])
    out, at = collections.OrderedDict(), 7
    for k, t in state.items():
        out[k] = flat[at : at + t.numel()].view(t.shape)
        at += t.numel()
    return out


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.manual_seed(7)
    net = Autoencoder()
    state = net.state_dict()

    save("service.pt", state)
    save("float16.pt", convert(state, lambda t: t.half()))
    save("bfloat16.pt", convert(state, lambda t: t.bfloat16()))
    save("float64.pt", convert(state, lambda t: t.double()))
    save("transposed.pt", convert(state, transposed))
    save("shared.pt", views(state))
    save("parameters.pt", collections.OrderedDict(net.named_parameters()))
    save("protocol4.pt", state, pickle_protocol=4)
    save("protocol1.pt", state, pickle_protocol=1)

    # A storage of one element behind a tensor of many: strides of zero.
    expanded = state.copy()
    expanded["encoder.0.weight"] = torch.tensor(0.25).expand(4, 3, 3, 3)
    save("expanded.pt", expanded)

    # A bare state dict says nothing of the image's size.
    torch.save(state, path("bare.pt"))
    expect("bare.pt", state, image_size=256)

    # What a training loop adds to carry on later. Plain SGD with momentum keeps the file small.
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    net(torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE)).mean().backward()
    optimizer.step()
    save("resumable.pt", net.state_dict(), more={
        "epoch": 3, "losses": [0.5, 0.25], "best": None, "seed": 2**64 - 1, "betas": (0.9, 0.999),
        "optimizer_state_dict": optimizer.state_dict(), "batches": torch.tensor(12), "finished": True,
    })

    # What a config may carry beside the Python service's keys.
    save("threshold.pt", net.state_dict(), config={
        "image_size": IMAGE_SIZE, "input_channels": 3, "threshold": 0.0375, "mean_error": 0.02, "std_error": 0.01,
        "class_names": ["normal", "Blähung"], "model_type": "autoencoder", "channels": CHANNELS, "format_version": 1,
    })

    # Files that must be refused.
    refused = {"model_state_dict": state, "config": {"image_size": IMAGE_SIZE, "input_channels": 3}}
    torch.save(refused, path("legacy.pt"), _use_new_zipfile_serialization=False)
    small = Autoencoder([3, 2])
    torch.save(small, path("module.pt"))  # the module itself: its class is to be imported
    torch.save({"model_state_dict": nn.Linear(3, 2).state_dict(), "config": {}}, path("foreign.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(nn.ReLU())).save(path("torchscript.pt"))
        torch.onnx.export(
            net, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE), path("service.onnx"), dynamo=False,
            input_names=["input"], output_names=["output"], dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )
    expect("service.onnx", net.state_dict())

    # What PyTorch's newer exporter makes of it, without the traces of where its source lies.
    exported = torch.onnx.export(
        Judge(net).eval(), (torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE),), dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    ).model_proto
    for part in [exported.graph, *exported.graph.node, *exported.graph.value_info]:
        del part.metadata_props[:]
    with open(path("dynamo.onnx"), "wb") as f:
        f.write(exported.SerializeToString(deterministic=True))
    expect("dynamo.onnx", net.state_dict())

    with open(path("expected.json"), "w") as f:
        json.dump(expected, f, indent=1)
        f.write("\n")
    print("PyTorch", torch.__version__, sum(os.path.getsize(path(n)) for n in os.listdir(OUT)), "bytes in", len(os.listdir(OUT)))


if __name__ == "__main__":
    main()
