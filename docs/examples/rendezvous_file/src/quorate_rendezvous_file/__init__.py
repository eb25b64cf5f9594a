"""Rendezvous in a directory that all nodes share: quorate run --rdzv-backend=file --rdzv-endpoint=/shared ..."""

import fcntl
import os
from contextlib import contextmanager
from urllib.parse import quote

from quorate import RendezvousBackend, StoreUnavailableError, UsageError, hookimpl
from quorate.clock import monotonic, sleep

POLL_SECONDS = 0.02  # a shared disk has no notifications


class FileStore:
    """One file per key; each operation locks the folder, and the kernel unlocks it when a process dies."""

    def __init__(self, parameters):
        check(parameters)
        self._folder = parameters.endpoint
        self._job = quote(parameters.run_id, safe="") + "="  # quoted text contains neither "=" nor "/"
        with self._locked():
            pass  # the folder exists

    @contextmanager
    def _locked(self):
        try:
            lock = os.open(self._folder, os.O_RDONLY)  # a new descriptor each time, so that threads exclude each other
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise StoreUnavailableError(f"the shared folder {self._folder}: {error.strerror}") from error

    def _path(self, key):
        return os.path.join(self._folder, self._job + quote(key, safe=""))

    def _read(self, key):
        try:
            with open(self._path(key), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _write(self, key, value):
        with open(os.path.join(self._folder, "=new"), "wb") as file:
            file.write(value)
        os.replace(file.name, self._path(key))  # atomic: a node that dies here leaves the old value or the new one

    def create(self, key, value):
        with self._locked():
            is_new = not os.path.exists(self._path(key))
            if is_new:
                self._write(key, value)
            return is_new

    def put(self, key, value):
        with self._locked():
            self._write(key, value)

    def add(self, key, amount):
        with self._locked():
            count = int(self._read(key) or b"0") + amount
            self._write(key, b"%d" % count)
            return count

    def get(self, keys):
        with self._locked():
            return [self._read(key) for key in keys]

    def wait(self, key, timeout):
        deadline = monotonic() + timeout
        while (value := self.get([key])[0]) is None and (left := deadline - monotonic()) > 0:
            sleep(min(POLL_SECONDS, left))
        return value

    def delete(self, prefix):
        with self._locked():
            for name in os.listdir(self._folder):
                if name.startswith(self._job + quote(prefix, safe="")):
                    os.unlink(os.path.join(self._folder, name))

    def close(self):
        """Nothing stays open between two calls."""


def check(parameters):
    if not os.path.isabs(parameters.endpoint):
        raise UsageError(f"{parameters.endpoint!r} is not an absolute path; set --rdzv-endpoint to the shared folder")


class Plugin:
    @hookimpl
    def quorate_register_rendezvous(self):
        return [RendezvousBackend("file", "a directory that all nodes share", open_store=FileStore, check=check)]


plugin = Plugin()
