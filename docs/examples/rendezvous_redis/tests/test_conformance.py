import pytest

from quorate.testing import ServerProcess, StoreConformance, free_port


class TestRedis(StoreConformance):
    backend = "redis"
    absent = {"interrupt": "the core waits in slices of a second"}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory):
        port, folder = free_port(), tmp_path_factory.mktemp("redis")
        command = f"redis-server --port {port} --bind 127.0.0.1 --dir {folder} --appendonly yes --appendfsync always"
        with ServerProcess(command.split(), port) as server:
            yield server
