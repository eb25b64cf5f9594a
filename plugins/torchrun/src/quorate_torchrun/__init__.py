"""Torchrun's Python interface on quorate: the names, arguments and results of ``torch.distributed.run`` and
``torch.distributed.launcher``.

torch is imported only by programs that use it themselves.  What does not live here: the launch (:mod:`quorate`).
"""

from __future__ import annotations

from ._arguments import (
    determine_local_world_size,
    get_args_parser,
    get_rdzv_endpoint,
    parse_args,
    parse_min_max_nnodes,
)
from ._config import LaunchConfig
from ._launch import config_from_args, elastic_launch, launch_agent, main, run, run_script_path
from ._plugin import plugin

__all__ = [
    "LaunchConfig",
    "config_from_args",
    "determine_local_world_size",
    "elastic_launch",
    "get_args_parser",
    "get_rdzv_endpoint",
    "launch_agent",
    "main",
    "parse_args",
    "parse_min_max_nnodes",
    "plugin",
    "run",
    "run_script_path",
]
