"""The backends ``etcd`` and ``etcd-v2`` keep the laws of the conformance kit, behind a proxy that can be cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quorate.proc import state_of
from quorate.testing import CuttableProxy, StoreConformance, settles
from quorate_rendezvous_etcd import EtcdServer


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
            assert settles(lambda: all(state_of(pid) == "T" for pid in self._etcd.pids))
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
