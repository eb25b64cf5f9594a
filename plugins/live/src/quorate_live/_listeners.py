"""Whether a port of this machine is listened on, without connecting to it.

The kernel is asked by netlink (sock_diag(7)), which answers in a tenth of a millisecond.  ``/proc/net/tcp`` says the
same where that cannot be had, but lists every connection of the machine: some tens of milliseconds on a busy one.
"""

from __future__ import annotations

import errno
import socket
import struct

_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20  # linux/netlink.h, linux/sock_diag.h
_REQUEST_ALL = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
#: struct inet_diag_req_v2: family, protocol, extensions, states, then the ports of struct inet_diag_sockid.
_QUESTION = struct.Struct("=BBBxI2s46x")
_LISTEN = 10  # TCP_LISTEN
_LONGEST_ANSWER_BYTES = 1 << 16
_TIMEOUT_SECONDS = 0.5


def listens(port: int) -> bool:
    """Return whether a socket of this machine listens on TCP port ``port``."""
    try:
        return any(_kernel_lists(family, port) for family in (socket.AF_INET, socket.AF_INET6))
    except OSError:
        return _proc_lists(port)  # no such family of sockets, or not permitted (gVisor, seccomp)


def _kernel_lists(family: int, port: int) -> bool:
    """Return whether the kernel lists such a socket of one address family.

    Raises:
        OSError: the kernel does not say.
    """
    question = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN, port.to_bytes(2, "big"))
    # Not socket.socket: the program may have replaced that.
    channel = socket.SocketType(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
    try:
        channel.settimeout(_TIMEOUT_SECONDS)
        channel.send(_HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST_ALL, 0, 0) + question)
        answer = channel.recv(_LONGEST_ANSWER_BYTES)
    finally:
        channel.close()
    if len(answer) < _HEADER.size:
        raise OSError(errno.EPROTO, "the kernel's answer is too short")
    kind: int = _HEADER.unpack_from(answer)[1]
    if kind == _NLMSG_ERROR:
        raise OSError(errno.EOPNOTSUPP, "the kernel does not list sockets")
    return kind != _NLMSG_DONE  # the first message is a socket, or the end of an empty list


def _proc_lists(port: int) -> bool:
    needle, listening = f":{port:04X}", f"{_LISTEN:02X}"
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path) as file:
                for line in file:
                    words = line.split(None, 4)
                    if words[3] == listening and words[1].endswith(needle):
                        return True
        except OSError:
            continue
    return False
