"""Makes training.json: 20 training steps of PyTorch from given weights on given batches.

How to run: python testdata/golden/make_training.py (PyTorch 2.15, numpy 2.4; CPU).
It writes testdata/golden/training.json, which trainer's golden test reads.

Weights and images come from a hash that both languages compute exactly, so the
file holds only what PyTorch made of them: the loss of each step, and the
weights after the last one (all of a narrow network, every 97th of the contract's).
"""
import base64
import json
import pathlib

import numpy as np
import torch
from torch import nn

STEPS, BATCH, IMAGES, RATE = 20, 5, 12, 1e-3


def uniform(n, salt):
    """n numbers in [0, 1) from Knuth's multiplicative hash of 1..n."""
    i = np.arange(1, n + 1, dtype=np.uint64)
    h = (i * np.uint64(2654435761) + np.uint64(salt) * np.uint64(40503)) % np.uint64(2**32)
    h = (h ^ (h >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(2**32)
    h = h ^ (h >> np.uint64(13))
    return h.astype(np.float64) / 2**32


def network(channels):
    encoder, decoder = [], []
    for a, b in zip(channels, channels[1:]):
        encoder += [nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()]
    back = channels[::-1]
    for i, (a, b) in enumerate(zip(back, back[1:])):
        last = i == len(back) - 2
        decoder += [nn.ConvTranspose2d(a, b, 3, 2, 1, 1), nn.Sigmoid() if last else nn.ReLU()]
    return nn.ModuleDict({"encoder": nn.Sequential(*encoder), "decoder": nn.Sequential(*decoder)})


def case(channels, height, width, every):
    net = network(channels)
    state = net.state_dict()
    for salt, (name, tensor) in enumerate(state.items()):
        if tensor.dim() == 4:
            bound = 1 / np.sqrt(tensor.shape[1] * 9)
        values = (2 * uniform(tensor.numel(), salt) - 1) * bound
        state[name] = torch.from_numpy(values.astype(np.float32).reshape(tensor.shape))
    net.load_state_dict(state)
    size = height * width * 3
    images = [np.floor(uniform(size, 1000 + i) * 256).astype(np.uint8) for i in range(IMAGES)]
    data = torch.stack([torch.from_numpy(p.reshape(height, width, 3)).permute(2, 0, 1).float() / 255 for p in images])
    adam = torch.optim.Adam(net.parameters(), RATE)
    losses, start = [], 0
    for _ in range(STEPS):
        batch = data[start:start + BATCH]  # 5, 5 and 2 images: the last one is short
        start = start + BATCH if start + BATCH < IMAGES else 0
        adam.zero_grad()
        loss = nn.functional.mse_loss(net["decoder"](net["encoder"](batch)), batch)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    weights = {n: base64.b64encode(t.detach().flatten()[::every].numpy().astype("<f4").tobytes()).decode()
               for n, t in net.state_dict().items()}
    return {"channels": channels, "height": height, "width": width, "every": every, "batch": BATCH,
            "images": IMAGES, "learning_rate": RATE, "losses": losses, "weights": weights}


torch.set_num_threads(1)
cases = [case([3, 4, 6, 8, 10], 32, 32, 1), case([3, 32, 64, 128, 256], 32, 48, 97)]
out = pathlib.Path(__file__).with_name("training.json")
out.write_text(json.dumps({"torch": torch.__version__, "cases": cases}, indent=1) + "\n")
print(out, out.stat().st_size, "bytes")
