"""Makes errors.pt and errors.json: the reconstruction errors of the 100 real tiles as PyTorch and Pillow find them.

How to run: python testdata/golden/make_errors.py (PyTorch 2.15, Pillow 13, numpy 2.4; CPU, a minute).
It trains a narrow autoencoder (3-8-16-24-32, 64 px) on testdata/tiles/train/good, saves it as the Python
service does, and writes the mean squared error of every tile below testdata/tiles.
inference's parity test reads both files and must come within 0.5 % of each error.
"""
import json
import pathlib

import numpy as np
import torch
from PIL import Image
from torch import nn

SIDE, CHANNELS, EPOCHS, BATCH = 64, [3, 8, 16, 24, 32], 60, 16


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        encoder, decoder = [], []
        for a, b in zip(CHANNELS, CHANNELS[1:]):
            encoder += [nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()]
        back = CHANNELS[::-1]
        for a, b in zip(back, back[1:]):
            decoder += [nn.ConvTranspose2d(a, b, 3, 2, 1, 1), nn.Sigmoid() if b == 3 else nn.ReLU()]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def load(path):
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.BILINEAR)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


torch.set_num_threads(1)
torch.manual_seed(0)
here = pathlib.Path(__file__).parent
tiles = here.parent / "tiles"
normal = torch.stack([load(p) for p in sorted((tiles / "train" / "good").glob("*.jpg"))])
net = Autoencoder()
adam = torch.optim.Adam(net.parameters(), 1e-3)
for _ in range(EPOCHS):
    for batch in torch.randperm(len(normal)).split(BATCH):
        adam.zero_grad()
        nn.functional.mse_loss(net(normal[batch]), normal[batch]).backward()
        adam.step()
torch.save({"model_state_dict": net.state_dict(), "config": {"image_size": SIDE, "input_channels": 3}}, here / "errors.pt")
errors = {}
with torch.no_grad():
    for path in sorted(tiles.rglob("*.jpg")):
        x = load(path)[None]
        errors[path.relative_to(tiles).as_posix()] = nn.functional.mse_loss(net(x), x).item()
(here / "errors.json").write_text(json.dumps(errors, indent=1) + "\n")
print(len(errors), "tiles, mean error", sum(errors.values()) / len(errors))
