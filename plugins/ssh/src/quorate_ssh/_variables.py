"""Which environment variables go from this machine to the hosts.

The rule: all of them, because a job in the same folder expects the same environment; but none that belong to a machine
or a session (home, user, shell, terminal, display, agent of ssh), none of a scheduler, and none that quorate sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from quorate.errors import UsageError
from quorate.job_token import TOKEN_VARIABLES

ALL = "all"
_OWN_TEXT = """
    _ BASHOPTS BASH_ENV COLUMNS COLORTERM DISPLAY EDITOR ENV EUID HISTFILE HOME HOST HOSTNAME HOSTTYPE IFS INVOCATION_ID
    JOURNAL_STREAM KRB5CCNAME LINES LOGNAME LS_COLORS MACHTYPE MAIL MANPATH NOTIFY_SOCKET OLDPWD OSTYPE PAGER PPID PS1
    PS2 PS4 PWD SHELL SHELLOPTS SHLVL STY TEMP TERM TERM_PROGRAM TERM_PROGRAM_VERSION TMP TMPDIR TMUX TMUX_PANE TTY UID
    USER USERNAME VISUAL WAYLAND_DISPLAY WINDOWID XAUTHORITY
"""
_OWN_NAMES = frozenset(_OWN_TEXT.split())
_OWN_PREFIXES = (
    # sessions
    *("SSH_", "XDG_", "DBUS_", "GPG_", "SUDO_", "VSCODE_", "SYSTEMD_", "DESKTOP_", "GNOME_", "KDE_", "BASH_FUNC_"),
    # schedulers and launchers: the agents on the hosts are not their processes
    *("SLURM", "PBS_", "LSB_", "LSF_", "FLUX_", "OMPI_", "PMIX_", "PMI_", "PRTE_", "ORTE_", "SKYPILOT_", "KUBERNETES_"),
    # quorate: flags travel as arguments, and the rest belongs to one agent
    *("PET_", "TORCHELASTIC_", "QUORATE_"),
)
_WORKERS_TEXT = """
    RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE
    ROLE_NAME MASTER_ADDR MASTER_PORT
"""
_WORKERS = frozenset(_WORKERS_TEXT.split())
#: These of quorate's own are settings of the user.
_SETTINGS = TOKEN_VARIABLES | {"QUORATE_LOG", "QUORATE_DISABLE_PLUGINS", "QUORATE_ERROR_RECORDER"}
_PATTERN = re.compile(r"-?[A-Za-z0-9_*?\[\]]+")


def chosen_variables(environment: Mapping[str, str], rule: str) -> dict[str, str]:
    """Return the variables of ``environment`` that go to the hosts.

    Arguments:
        environment: this process's.
        rule: ``all``, or patterns separated by commas.  A pattern adds what it matches, one with a minus sign before it
            takes away; where the first is of the second kind, the list begins with ``all``.

    Raises:
        UsageError: a pattern is not one.
    """
    patterns = [part.strip() for part in rule.split(",") if part.strip()]
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise UsageError(
                f"--ssh-env={rule}: {pattern!r} is not a name of variables; write all, NCCL_* or -SECRET_*"
            )
    chosen: dict[str, str] = {}
    if not patterns or patterns[0].startswith("-"):
        patterns.insert(0, ALL)
    for pattern in patterns:
        if pattern == ALL:
            chosen.update((name, value) for name, value in environment.items() if not _is_own(name))
        elif pattern.startswith("-"):
            chosen = {name: value for name, value in chosen.items() if not fnmatchcase(name, pattern[1:])}
        else:
            chosen.update((name, value) for name, value in environment.items() if fnmatchcase(name, pattern))
    return chosen


def _is_own(name: str) -> bool:
    if name in _SETTINGS:
        return False
    return name in _OWN_NAMES or name in _WORKERS or name.startswith(_OWN_PREFIXES)
