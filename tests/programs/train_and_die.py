"""Train with the given settings, data and run folder, and die of SIGKILL in the fourth step."""

import json
import os
import signal
import sys

import torch

from transformersr.training import train as training
from transformersr.training.config import from_values

rate = training.learning_rate


def rate_or_die(config, step, done):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(config, step, done)


training.learning_rate = rate_or_die

if __name__ == "__main__":  # data loader workers import this file as well
    torch.set_num_threads(1)
    training.train(from_values(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3])
