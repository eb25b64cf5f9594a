"""Two steps of transformers' Trainer; its files go to argv[1]."""

from __future__ import annotations

import sys

import torch
from said import say
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

config = BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
data = [{"input_ids": torch.arange(4) + each % 8, "labels": each % 2} for each in range(16)]
arguments = TrainingArguments(
    output_dir=sys.argv[1],
    use_cpu=True,
    max_steps=2,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    logging_strategy="no",
)
trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=data)
steps = trainer.train().global_step
say(arguments.process_index, arguments.world_size, steps)
