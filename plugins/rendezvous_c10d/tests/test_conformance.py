"""The backend ``c10d`` keeps the laws of the conformance kit."""

from __future__ import annotations

import pytest

from quorate.testing import FreshPorts, StoreConformance

HOSTED = "the server ends with the node that hosts it, which test_lost covers"


class TestC10d(StoreConformance):
    backend = "c10d"
    dead_endpoint = "192.0.2.1:29400"
    absent = {"partition": HOSTED, "pause": HOSTED, "restart": HOSTED}

    @pytest.fixture
    def server(self) -> FreshPorts:
        return FreshPorts()


class TestSignedC10d(TestC10d):
    signed = True
