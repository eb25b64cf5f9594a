"""Two steps of a DeepSpeed engine."""

from __future__ import annotations

import torch
from said import say
from uncompiled_deepspeed import deepspeed

deepspeed.init_distributed("gloo")
model = torch.nn.Linear(4, 2)
config = {
    "train_micro_batch_size_per_gpu": 2,
    "zero_optimization": {"stage": 1},
    "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
}
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), config=config)
for _ in range(2):
    engine.backward(engine(torch.ones(2, 4)).sum())
    engine.step()
say(engine.global_rank, engine.world_size, engine.global_steps)
