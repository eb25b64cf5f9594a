"""Rendezvous over a Redis server: quorate run --rdzv-backend=redis --rdzv-endpoint=HOST:6379 ..."""

from contextlib import contextmanager
from urllib.parse import quote

from quorate import RendezvousBackend, StoreUnavailableError, hookimpl
from quorate.clock import monotonic, sleep
from quorate.net import parse_endpoint

POLL_SECONDS = 0.02


class RedisStore:
    """Every operation is one command, which the server carries out atomically."""

    def __init__(self, parameters):
        import redis  # when the backend is opened: every launch imports this module

        endpoint = parse_endpoint(parameters.endpoint)
        self._error = redis.RedisError
        self._prefix = f"quorate:{quote(parameters.run_id, safe='')}:"
        self._timeout = parameters.get_as_float("operation_timeout", 5.0)
        connect_timeout = min(self._timeout, parameters.get_as_float("connect_timeout", 60.0))
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # the core retries; a hidden retry would count twice
        self._client = redis.Redis(
            endpoint.host,
            endpoint.port,
            socket_timeout=self._timeout,
            socket_connect_timeout=connect_timeout,
            retry=retry,
        )
        with self._answers():
            self._client.ping()

    @contextmanager
    def _answers(self):
        try:
            yield
        except self._error as error:
            raise StoreUnavailableError(f"the Redis server does not answer: {error}") from error

    def create(self, key, value):
        with self._answers():
            return bool(self._client.set(self._prefix + key, value, nx=True))

    def put(self, key, value):
        with self._answers():
            self._client.set(self._prefix + key, value)

    def put_many(self, items):
        with self._answers():
            if items:
                self._client.mset({self._prefix + key: value for key, value in items})

    def add(self, key, amount):
        with self._answers():
            return self._client.incrby(self._prefix + key, amount)

    def get(self, keys):
        with self._answers():
            return self._client.mget([self._prefix + key for key in keys]) if keys else []

    def wait(self, key, timeout):
        deadline = monotonic() + timeout
        while (value := self.get([key])[0]) is None and (left := deadline - monotonic()) > 0:
            sleep(min(POLL_SECONDS, left))
        return value

    def delete(self, prefix):
        pattern = "".join(
            f"\\{character}" if character in "*?[]\\^" else character for character in self._prefix + prefix
        )
        with self._answers():
            for key in self._client.scan_iter(pattern + "*", count=1000):
                self._client.delete(key)

    def close(self):
        self._client.close()


def check(parameters):
    parse_endpoint(parameters.endpoint)


class Plugin:
    @hookimpl
    def quorate_register_rendezvous(self):
        return [RendezvousBackend("redis", "a Redis server", open_store=RedisStore, check=check)]


plugin = Plugin()
