"""After a run of the engine, print how many new memory pages eight rounds of allocating and freeing needed."""

import resource

import torch

from transformersr.arch import TransformerSR, TransformerSRConfig
from transformersr.upscale.engine import upscale

upscale(TransformerSR(TransformerSRConfig(embed_dim=8, num_heads=1, blocks="RWC")), torch.zeros(1, 3, 8, 8))
for round in range(11):
    if round == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [torch.ones(2**20) for _ in range(10)]
    del layers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
