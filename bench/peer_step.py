"""PyTorch's time for one training step of the contract's network: forward, backward, Adam.

    echo "256 16 channels_last 8" | python bench/peer_step.py

Each line of the input asks for a side, a batch, a memory layout and a number of steps, and is
answered by a JSON object with the images a second of the median step. So one process takes
turns with another program, without the seconds that importing PyTorch takes: long enough for
the machine's pace to change in between.
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
    """A network with its optimizer and one batch of noise."""

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
    """The times of so many steps, in milliseconds, after some that do not count."""
    step = Step(side, batch, layout, device)
    for _ in range(warmup):
        step.milliseconds()
    return [step.milliseconds() for _ in range(steps)]


def main():
    p = argparse.ArgumentParser(description="time PyTorch's training step, as lines of standard input ask for it")
    p.add_argument("--warmup", type=int, default=2, help="steps before each measurement that are not timed")
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
