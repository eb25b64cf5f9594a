"""Torchrun's Python interface on quorate: the names, arguments and results of ``torch.distributed.run`` and
``torch.distributed.launcher``.

torch is imported only by programs that use it themselves, and nothing is imported until it is used: every launch loads
this package as a plugin.  What does not live here: the launch (:mod:`quorate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from ._arguments import (
        determine_local_world_size as determine_local_world_size,
        get_args_parser as get_args_parser,
        get_rdzv_endpoint as get_rdzv_endpoint,
        parse_args as parse_args,
        parse_min_max_nnodes as parse_min_max_nnodes,
    )
    from ._config import LaunchConfig as LaunchConfig
    from ._launch import (
        config_from_args as config_from_args,
        elastic_launch as elastic_launch,
        launch_agent as launch_agent,
        main as main,
        run as run,
        run_script_path as run_script_path,
    )
    from ._plugin import plugin as plugin

_HOMES = {
    "_arguments": "determine_local_world_size get_args_parser get_rdzv_endpoint parse_args parse_min_max_nnodes",
    "_config": "LaunchConfig",
    "_launch": "config_from_args elastic_launch launch_agent main run run_script_path",
    "_plugin": "plugin",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)  # noqa: PLE0605 - derived, so that no list is kept twice
__getattr__ = lazy_exports(globals(), _HOME)
