"""The backend ``tcp`` keeps the laws of the conformance kit, and ``standalone`` those for a single node."""

from __future__ import annotations

import pytest

from quorate.testing import FreshPorts, RendezvousConformance, StoreConformance

HOSTED = "the server ends with the node that hosts it, which test_lost covers"


class TestTcp(StoreConformance):
    backend = "tcp"
    dead_endpoint = "192.0.2.1:29400"
    absent = {"partition": HOSTED, "pause": HOSTED, "restart": HOSTED}

    @pytest.fixture
    def server(self) -> FreshPorts:
        return FreshPorts()


class TestStandalone(RendezvousConformance):
    backend = "standalone"
    absent = {"several_nodes": "it is one node on its own", "endpoint": "it has no use for one"}

    @pytest.fixture
    def server(self) -> str:
        return ""


class TestSignedTcp(TestTcp):
    signed = True
