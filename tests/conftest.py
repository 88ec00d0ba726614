"""Settings for all tests."""

import torch

torch.set_num_threads(1)  # the networks here are so small that sharing them out takes longer than running them
