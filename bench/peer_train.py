"""The Python service's training, as a baseline of the benchmark: the contract's network and recipe
with Pillow, torchvision, a Dataset and a DataLoader, as such a service is usually written.

    python bench/peer_train.py FOLDER [--level 1] [--image-size 256] [--seed 0] [--out FOLDER]

Prints one JSON object: losses per epoch, threshold, seconds. The other peers import the network
and the recipe from this module.
"""

import argparse
import json
import os
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")

# level: epochs, batch size, learning rate
LEVELS = {1: (5, 16, 1e-3), 2: (10, 16, 1e-3), 3: (30, 16, 1e-3), 4: (50, 8, 5e-4), 5: (100, 8, 1e-4)}


class Autoencoder(nn.Module):
    """Four strided convolutions and four transposed ones."""

    def __init__(self, channels=(3, 32, 64, 128, 256)):
        super().__init__()
        down, up = [], []
        for a, b in zip(channels, channels[1:]):
            down += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()]
        back = channels[::-1]
        for a, b in zip(back, back[1:]):
            up += [nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), nn.ReLU()]
        up[-1] = nn.Sigmoid()
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def load_image(source, side):
    """Returns an image file as the network's input: 3 x side x side, from 0 to 1."""
    with Image.open(source) as image:
        return tensor(image, side)


def tensor(image, side):
    small = image.convert("RGB").resize((side, side), Image.BILINEAR)
    pixels = np.asarray(small, dtype=np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def find_images(folder):
    found = []
    for base, _, names in os.walk(folder):
        found += [os.path.join(base, n) for n in names if n.lower().endswith(ENDINGS) and not n.startswith(".")]
    return sorted(found)


class Images(Dataset):
    """Decodes and resizes images on access, with torchvision's transforms."""

    def __init__(self, paths, side):
        # Imported here, because importing only the network must work without torchvision.
        from torchvision import transforms

        self.paths = paths
        self.transform = transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor()])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB"))


def train(paths, level, side, seed=None, workers=2):
    """Trains by the recipe. Returns the network and the contents of metadata.json."""
    epochs, batch, rate = LEVELS[level]
    if seed is not None:
        torch.manual_seed(seed)
    network = Autoencoder()
    data = Images(paths, side)
    loader = DataLoader(data, batch_size=batch, shuffle=True, num_workers=workers)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    criterion = nn.MSELoss()

    losses = []
    network.train()
    for _ in range(epochs):
        total, batches = 0.0, 0
        for x in loader:
            optimizer.zero_grad()
            loss = criterion(network(x), x)
            loss.backward()
            optimizer.step()
            total += loss.item()
            batches += 1
        losses.append(total / batches)

    network.eval()
    errors = []
    with torch.no_grad():
        for x in DataLoader(data, batch_size=batch, num_workers=workers):
            errors += ((network(x) - x) ** 2).mean(dim=(1, 2, 3)).tolist()
    mean, std = float(np.mean(errors)), float(np.std(errors))
    return network, {
        "model_type": "autoencoder",
        "image_size": side,
        "threshold": mean + 2 * std,
        "mean_error": mean,
        "std_error": std,
        "training_losses": losses,
    }


def checkpoint(network, side):
    return {"model_state_dict": network.state_dict(), "config": {"image_size": side, "input_channels": 3}}


def main():
    p = argparse.ArgumentParser(description="train the contract's autoencoder with PyTorch")
    p.add_argument("folder")
    p.add_argument("--level", type=int, default=1, choices=sorted(LEVELS))
    p.add_argument("--image-size", type=int, default=256)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--workers", type=int, default=2, help="processes that decode images")
    p.add_argument("--out", help="folder to write autoencoder.pt and metadata.json to")
    a = p.parse_args()
    if a.image_size < 16 or a.image_size % 16:
        p.error("--image-size must be a multiple of 16")
    paths = find_images(a.folder)
    if not paths:
        sys.exit(f"no image files in {a.folder}")

    torch.set_num_threads(a.threads)
    start = time.perf_counter()
    network, metadata = train(paths, a.level, a.image_size, a.seed, a.workers)
    seconds = time.perf_counter() - start
    if a.out:
        os.makedirs(a.out, exist_ok=True)
        torch.save(checkpoint(network, a.image_size), os.path.join(a.out, "autoencoder.pt"))
        with open(os.path.join(a.out, "metadata.json"), "w") as f:
            json.dump(metadata, f, indent=2)
    print(json.dumps({
        "torch": torch.__version__, "level": a.level, "image_size": a.image_size, "seed": a.seed,
        "threads": a.threads, "images": len(paths), "losses": metadata["training_losses"],
        "threshold": metadata["threshold"], "mean_error": metadata["mean_error"],
        "std_error": metadata["std_error"], "seconds": round(seconds, 3),
    }))


if __name__ == "__main__":
    main()
