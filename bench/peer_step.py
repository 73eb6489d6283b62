"""PyTorch's time for one training step of the contract's network: forward, backward, Adam.

    python bench/peer_step.py [--sides 128,256] [--batches 16,8] [--rounds 3] [--steps 8]

One JSON object a line for each side, batch and memory layout: the median step, and the
fastest and slowest round (each the median of its steps). The layouts take turns within a
round, so that a change of the machine's pace meets both.
"""

import argparse
import json
import statistics
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


def integers(text):
    return [int(part) for part in text.split(",")]


def main():
    p = argparse.ArgumentParser(description="time PyTorch's training step")
    p.add_argument("--sides", type=integers, default=[128, 256])
    p.add_argument("--batches", type=integers, default=[16, 8])
    p.add_argument("--layouts", type=lambda s: s.split(","), default=list(LAYOUTS))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=8, help="timed steps a round")
    p.add_argument("--warmup", type=int, default=2, help="steps before each round that are not timed")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--device", default="cpu")
    a = p.parse_args()
    if any(layout not in LAYOUTS for layout in a.layouts):
        p.error(f"--layouts takes {' and '.join(LAYOUTS)}")
    torch.set_num_threads(a.threads)

    for side in a.sides:
        for batch in a.batches:
            rounds = {layout: [] for layout in a.layouts}
            every = {layout: [] for layout in a.layouts}
            for _ in range(a.rounds):
                for layout in a.layouts:
                    step = Step(side, batch, layout, a.device)
                    for _ in range(a.warmup):
                        step.milliseconds()
                    times = [step.milliseconds() for _ in range(a.steps)]
                    rounds[layout].append(statistics.median(times))
                    every[layout] += times
            for layout in a.layouts:
                median = statistics.median(every[layout])
                print(json.dumps({
                    "torch": torch.__version__, "threads": a.threads, "side": side, "batch": batch,
                    "layout": layout, "rounds": a.rounds, "steps": a.steps,
                    "ms": round(median, 2), "ms_min": round(min(rounds[layout]), 2),
                    "ms_max": round(max(rounds[layout]), 2), "images_per_s": round(batch / median * 1e3, 2),
                }), flush=True)


if __name__ == "__main__":
    main()
