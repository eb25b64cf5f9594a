"""One step with accelerate."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from said import say

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(2, 1)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
accelerator.backward(model(torch.ones(1, 2)).sum())
optimizer.step()
say(accelerator.process_index, accelerator.num_processes)
accelerator.end_training()
