"""A replica group of torchft with one worker, named argv[1], which averages gradients with the other groups."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
from said import say
from torchft import Manager, ProcessGroupGloo

state = {"weight": torch.zeros(2)}
manager = Manager(
    pg=ProcessGroupGloo(timeout=timedelta(seconds=60)),
    min_replica_size=2,
    use_async_quorum=False,
    load_state_dict=state.update,
    state_dict=lambda: state,
    replica_id=sys.argv[1],
    timeout=timedelta(seconds=60),
    quorum_timeout=timedelta(seconds=120),
)
total, tries = 0, 0
while total < 2 and tries < 20:
    tries += 1
    manager.start_quorum()
    gradient = torch.full((2,), float(sys.argv[1][-1]))
    manager.allreduce(gradient).wait()
    if manager.should_commit():
        total += 1
        average = gradient[0].item()
say(sys.argv[1], manager.num_participants(), total, average)
manager.shutdown()
