"""Rendezvous in a directory that all nodes share: quorate run --rdzv-backend=file --rdzv-endpoint=/shared ..."""

import fcntl
import os
from contextlib import contextmanager, suppress
from tempfile import NamedTemporaryFile
from urllib.parse import quote

from quorate import RendezvousBackend, StoreUnavailableError, UsageError, hookimpl
from quorate.clock import monotonic, sleep

POLL_SECONDS = 0.02  # a shared disk has no notifications


class FileStore:
    """One file per key.  Only ``add`` takes a lock, so that a node that stands still holds up no heartbeat."""

    def __init__(self, parameters):
        check(parameters)
        self._folder = parameters.endpoint
        self._job = quote(parameters.run_id, safe="") + "="  # quoted text contains neither "=" nor "/"
        with unavailable_on_error(self._folder):
            os.listdir(self._folder)

    def _path(self, key):
        return os.path.join(self._folder, self._job + quote(key, safe=""))

    def _read(self, key):
        try:
            with open(self._path(key), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _new_file(self, value):
        """Write a file that no key has yet; it gets its name in one step, with its whole content or not at all."""
        with NamedTemporaryFile(dir=self._folder, prefix="=new-", delete=False) as file:
            file.write(value)
        return file.name

    def create(self, key, value):
        with unavailable_on_error(self._folder):
            new = self._new_file(value)
            try:
                os.link(new, self._path(key))
            except FileExistsError:
                return False
            finally:
                os.unlink(new)
            return True

    def put(self, key, value):
        with unavailable_on_error(self._folder):
            os.replace(self._new_file(value), self._path(key))

    def add(self, key, amount):
        with unavailable_on_error(self._folder), open(os.path.join(self._folder, "=lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel unlocks it when a process dies
            count = int(self._read(key) or b"0") + amount
            self.put(key, b"%d" % count)
            return count

    def get(self, keys):
        with unavailable_on_error(self._folder):
            return [self._read(key) for key in keys]

    def wait(self, key, timeout):
        deadline = monotonic() + timeout
        while (value := self.get([key])[0]) is None and (left := deadline - monotonic()) > 0:
            sleep(min(POLL_SECONDS, left))
        return value

    def delete(self, prefix):
        with unavailable_on_error(self._folder):
            for name in os.listdir(self._folder):
                if name.startswith(self._job + quote(prefix, safe="")):
                    with suppress(FileNotFoundError):  # another node deletes it too
                        os.unlink(os.path.join(self._folder, name))

    def close(self):
        """Nothing stays open between two calls."""


@contextmanager
def unavailable_on_error(folder):
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(f"the shared folder {folder}: {error.strerror}") from error


def check(parameters):
    if not os.path.isabs(parameters.endpoint):
        raise UsageError(f"{parameters.endpoint!r} is not an absolute path; set --rdzv-endpoint to the shared folder")


class Plugin:
    @hookimpl
    def quorate_register_rendezvous(self):
        return [RendezvousBackend("file", "a directory that all nodes share", open_store=FileStore, check=check)]


plugin = Plugin()
