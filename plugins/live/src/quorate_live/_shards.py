"""Whole copies of a state that is spread over the workers (FSDP2), each in a worker's own memory.

A worker that dies takes its shards with it, and those of the others belong to a mesh of a world that is over.  So what
lives on is the copy that all workers took last; a new world of any size loads it.  What does not live here: which
worker's copy is the newest, and how newcomers get it (:mod:`._share`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, final

import torch


@final
class WholeState:
    """The state of the model, of the optimizer and of others after ``step`` updates, with tensors of the host alone."""

    def __init__(self, step: int, states: Sequence[Any]) -> None:
        self.step, self.states = step, list(states)


def is_sharded(model: Any) -> bool:
    """Return whether a model's parameters are spread over workers."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and any(isinstance(parameter, kind) for parameter in model.parameters())


def take_whole(model: Any, optimizer: Any, step: int, others: Sequence[Any]) -> WholeState:
    """Return a copy of the whole state; all workers of the world call this at the same step."""
    state_dict = _state_dicts()
    options = state_dict.StateDictOptions(full_state_dict=True)
    parts = state_dict.get_state_dict(model, [] if optimizer is None else [optimizer], options=options)
    return WholeState(step, [_on_host(each) for each in (*parts, *(other.state_dict() for other in others))])


def load_whole(whole: WholeState, model: Any, optimizer: Any, others: Sequence[Any]) -> None:
    """Load the shards of this worker from ``whole``; all workers of the world call this with the same one."""
    state_dict = _state_dicts()
    of_model, of_optimizer, *of_others = copy.deepcopy(whole.states)  # torch moves parts of it into the optimizer
    state_dict.set_state_dict(
        model,
        [] if optimizer is None else [optimizer],
        model_state_dict=of_model,
        optim_state_dict=of_optimizer,
        options=state_dict.StateDictOptions(full_state_dict=True),
    )
    for each, state in zip(others, of_others, strict=True):
        each.load_state_dict(state)


def _state_dicts() -> Any:
    """Return torch's module for states of sharded models, which is slow to import."""
    return import_module("torch.distributed.checkpoint.state_dict")


def _on_host(value: Any) -> Any:
    """Return a copy of ``value`` that shares nothing with it."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _on_host(each) for name, each in value.items()}
    if type(value) in (list, tuple):  # not their subclasses, which are made in other ways
        return type(value)(map(_on_host, value))
    return copy.deepcopy(value)
