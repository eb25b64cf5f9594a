"""Certificates and keys that the other side would refuse, or that cannot be read: what is wrong, and never a wait."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from quorate.certificates import why_refused, why_unreadable

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_CONFIGURATION = """
[ca]
default_ca=d
[d]
database=index
serial=serial
new_certs_dir=.
policy=p
unique_subject=no
[p]
commonName=supplied
"""


class Authority:
    """A certificate authority, and the certificates that it issues for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "index").touch()
        (folder / "configuration").write_text(_CONFIGURATION)
        self.key = str(folder / "node.key")
        self.ca_cert = str(folder / "ca.pem")
        self._run("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
        self._run("req", *_NEW_KEY, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=30.0)

    def issue(self, name: str, years: tuple[int, int] = (2020, 2090), usage: str = "serverAuth,clientAuth") -> str:
        """Return the path of a certificate that holds from the first year to the second."""
        (self.folder / "extensions").write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        first, last = (f"{year}0101000000Z" for year in years)
        self._run(
            *("ca", "-batch", "-config", "configuration", "-cert", "ca.pem", "-keyfile", "ca.key", "-create_serial"),
            *("-md", "sha256", "-in", "node.csr", "-out", name, "-startdate", first, "-enddate", last),
            *("-extfile", "extensions", "-notext"),
        )
        return str(self.folder / name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "authority")


def test_what_the_other_side_would_say(authority: Authority, tmp_path: Path) -> None:
    other, key = Authority(tmp_path / "other"), authority.key
    good = authority.issue("good")
    old, new = authority.issue("old", (2020, 2021)), authority.issue("new", (2090, 2091))
    for_servers = authority.issue("for-servers", usage="serverAuth")
    for ca_cert in ("", authority.ca_cert):
        for as_client in (False, True):
            assert why_refused(good, key, ca_cert=ca_cert, host="127.0.0.1", as_client=as_client) == ""
            assert "expired" in why_refused(old, key, ca_cert=ca_cert, as_client=as_client)
            assert "not yet valid" in why_refused(new, key, ca_cert=ca_cert, as_client=as_client)
        assert "mismatch" in why_refused(good, key, ca_cert=ca_cert, host="127.0.0.2")
        assert "mismatch" in why_refused(good, key, ca_cert=ca_cert, host="node1")
        assert why_refused(good, key, ca_cert=ca_cert, host="node1", as_client=True) == ""
        assert why_refused(for_servers, key, ca_cert=ca_cert) == ""
        assert "purpose" in why_refused(for_servers, key, ca_cert=ca_cert, as_client=True)
    for as_client in (False, True):
        assert "issuer" in why_refused(good, key, ca_cert=other.ca_cert, as_client=as_client)
    with pytest.raises(OSError, match="mismatch"):
        why_refused(good, other.key)


@pytest.mark.timeout(20)
def test_a_file_that_cannot_be_read_is_not_waited_for(authority: Authority, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("no certificate")
    encrypted = str(tmp_path / "encrypted")
    authority._run("ec", "-in", "node.key", "-aes256", "-passout", "pass:word", "-out", encrypted)
    for path, words in (
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("absent", "No such file"),
        ("text", "not a PEM file"),
        ("a\0b", "NUL"),
        ("/dev/zero", "is not a file"),
        (encrypted, "without a passphrase"),
    ):
        assert words in why_unreadable(os.path.join(tmp_path, path)), path
    assert why_unreadable(authority.ca_cert) == why_unreadable(authority.key) == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_of_another_user_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").touch(0)
    assert why_unreadable(str(tmp_path / "key")) == "Permission denied"
