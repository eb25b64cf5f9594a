import pytest

from quorate.testing import StoreConformance

NO_SERVER = "a directory has no server"


class TestFile(StoreConformance):
    backend = "file"
    dead_endpoint = "/not/mounted"
    absent = {
        **dict.fromkeys(("partition", "pause", "restart"), NO_SERVER),
        "batch": "each key is a file",
        "interrupt": "the core waits in slices of a second",
    }

    @pytest.fixture
    def server(self, tmp_path):
        return str(tmp_path)


class TestSignedFile(TestFile):
    """The same, with values that are signed with a job token."""

    signed = True
