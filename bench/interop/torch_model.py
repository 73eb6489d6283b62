"""Writes a model with PyTorch's random weights, like the Python service, and prints PyTorch's
version.

    python torch_model.py FILE SIDE SEED
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from peer_train import Autoencoder, checkpoint

file, side, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(seed)
torch.save(checkpoint(Autoencoder(), side), file)
print(torch.__version__)
