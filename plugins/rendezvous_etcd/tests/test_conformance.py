"""The backends ``etcd`` and ``etcd-v2`` keep the laws of the conformance kit, behind a proxy that can be cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quorate.testing import CuttableProxy, StoreConformance
from quorate_rendezvous_etcd import EtcdServer

from .etcd_harness import settles


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Server(CuttableProxy):
    """A private etcd that can be cut off, stopped and restarted."""

    def __init__(self, etcd: EtcdServer) -> None:
        super().__init__(etcd.get_endpoint())
        self.restart = etcd.restart
        self._etcd = etcd

    @contextmanager
    def pause(self) -> Iterator[None]:
        try:
            self._etcd.pause()
            assert settles(lambda: all(is_stopped(pid) for pid in self._etcd.pids))
            yield
        finally:
            self._etcd.resume()


class TestEtcd(StoreConformance):
    backend = "etcd"

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Server]:
        with EtcdServer() as etcd, Server(etcd) as server:
            yield server


class TestEtcdV2(StoreConformance):
    backend = "etcd-v2"
    absent = {"batch": "etcd's API v2 writes one key per request"}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Server]:
        with EtcdServer(enable_v2=True) as etcd, Server(etcd) as server:
            yield server


class TestSignedEtcd(TestEtcd):
    signed = True
