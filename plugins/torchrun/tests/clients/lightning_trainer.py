"""Two steps of Lightning's Trainer."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from said import say


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, number):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


trainer = Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_steps=2,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(16, 2), batch_size=2))
say(trainer.global_rank, trainer.world_size, trainer.global_step)
