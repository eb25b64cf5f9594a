"""Binds workers to the CPUs near their device (``--numa-binding``).

:class:`NumaPlugin` is what the entry point names an instance of.  :func:`read_topology`, :func:`find_devices` and
:func:`place` say what it would do on a machine, for programs that want to know.  All are imported when they are asked
for: every launch imports this package, and most bind nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from ._devices import Device, find_devices, visible_devices
    from ._modes import NumaMode
    from ._placement import Placement, place
    from ._plugin import NumaPlugin, plugin
    from ._topology import Topology, read_topology

__all__ = [
    "Device",
    "NumaMode",
    "NumaPlugin",
    "Placement",
    "Topology",
    "find_devices",
    "place",
    "plugin",
    "read_topology",
    "visible_devices",
]

__getattr__ = lazy_exports(
    globals(),
    {
        **dict.fromkeys(("Device", "find_devices", "visible_devices"), "_devices"),
        **dict.fromkeys(("Placement", "place"), "_placement"),
        **dict.fromkeys(("NumaPlugin", "plugin"), "_plugin"),
        **dict.fromkeys(("Topology", "read_topology"), "_topology"),
        "NumaMode": "_modes",
    },
)
