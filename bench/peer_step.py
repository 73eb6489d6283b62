"""Measures PyTorch's training step of the contract's network: forward, backward, Adam.

    echo "256 16 channels_last 8" | python bench/peer_step.py

Each input line has a side, a batch size, a memory layout and a number of steps. The answer is a
JSON object with the images per second of the median step. One process serves all rounds, because
importing PyTorch takes seconds, during which the speed of the machine may change.
"""

import argparse
import json
import statistics
import sys
import time

import torch
from torch import nn

from peer_train import Autoencoder

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Step:
    """A network with its optimizer and a batch of noise."""

    def __init__(self, side, batch, layout, device):
        torch.manual_seed(0)
        self.network = Autoencoder().to(device, memory_format=LAYOUTS[layout])
        self.x = torch.rand(batch, 3, side, side).to(device, memory_format=LAYOUTS[layout])
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.criterion = nn.MSELoss()

    def milliseconds(self):
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.criterion(self.network(self.x), self.x)
        loss.backward()
        self.optimizer.step()
        loss.item()
        return (time.perf_counter() - start) * 1e3


def measure(side, batch, layout, steps, warmup, device):
    """Returns the times of the steps in milliseconds, after warm-up steps."""
    step = Step(side, batch, layout, device)
    for _ in range(warmup):
        step.milliseconds()
    return [step.milliseconds() for _ in range(steps)]


def main():
    p = argparse.ArgumentParser(description="measure PyTorch's training step, as requested on standard input")
    p.add_argument("--warmup", type=int, default=2, help="warm-up steps before each measurement")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--device", default="cpu")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for line in sys.stdin:
        side, batch, layout, steps = line.split()
        times = measure(int(side), int(batch), layout, int(steps), a.warmup, a.device)
        print(json.dumps({"torch": torch.__version__, "images_per_s": int(batch) / statistics.median(times) * 1e3}), flush=True)


if __name__ == "__main__":
    main()
