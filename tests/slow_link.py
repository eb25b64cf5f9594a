"""A slow link between network namespaces, in user space, where the kernel has no ``netem``: packets are late or lost.

Each end is a TUN device.  What one end sends is handed to the others after a while, by its destination's address.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from itertools import count

from quorate.clock import monotonic

__all__ = ["SlowLink"]

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LARGEST_PACKET = 65_536


class SlowLink:
    """Joins the machines of ``ends``, and is gone once closed.

    Arguments:
        ends: by IPv4 address, the process in whose network namespace the device is made, and the device's name.
        delay_seconds: from one end to another.
        loss: the share of packets that never arrive.
        seed: of the choice of lost packets.

    Raises:
        OSError: this system lets no TUN device be made.
    """

    def __init__(self, ends: Mapping[str, tuple[int, str]], delay_seconds: float, loss: float, seed: int) -> None:
        self._delay, self._loss, self._random = delay_seconds, loss, random.Random(seed)
        self.lost = 0
        self._devices: dict[bytes, int] = {}
        self._ended = os.eventfd(0)
        try:
            for address, (pid, name) in ends.items():
                self._devices[bytes(map(int, address.split(".")))] = _tun_device(pid, name)
        except BaseException:
            self._close_all()
            raise
        self._thread = threading.Thread(target=self._run, name="slow-link")
        self._thread.start()

    def _run(self) -> None:
        order, late = count(), []
        poll = select.epoll()
        for descriptor in (self._ended, *self._devices.values()):
            poll.register(descriptor, select.EPOLLIN)
        with poll:
            while True:
                timeout = max(0.0, late[0][0] - monotonic()) if late else None
                for descriptor, _ in poll.poll(timeout):
                    if descriptor == self._ended:
                        return
                    packet = os.read(descriptor, _LARGEST_PACKET)
                    there = self._devices.get(packet[16:20]) if packet[:1] and packet[0] >> 4 == 4 else None
                    if there is None:
                        continue
                    if self._random.random() < self._loss:
                        self.lost += 1
                        continue
                    heapq.heappush(late, (monotonic() + self._delay, next(order), there, packet))
                while late and late[0][0] <= monotonic():
                    _, _, there, packet = heapq.heappop(late)
                    with suppress(OSError):  # that end is down
                        os.write(there, packet)

    def close(self) -> None:
        os.eventfd_write(self._ended, 1)
        self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        for descriptor in (self._ended, *self._devices.values()):
            os.close(descriptor)


def _tun_device(pid: int, name: str) -> int:
    """Return the descriptor of a new device in the network namespace of a process."""
    made: list[int] = []
    problems: list[OSError] = []

    def make() -> None:  # a thread of its own: a namespace is entered by a thread, and this one then ends
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "a network namespace cannot be entered")
            finally:
                os.close(namespace)
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
            except BaseException:
                os.close(device)
                raise
            made.append(device)
        except OSError as error:
            problems.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    return made[0]
