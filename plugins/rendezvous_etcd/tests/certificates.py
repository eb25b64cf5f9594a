"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .etcd_harness import DEADLINE_SECONDS

__all__ = ["Certificates"]

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


class Certificates:
    """A certificate authority, a server's certificate for 127.0.0.1 and a client's; :meth:`issue` makes others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca_cert, self._ca_key = self._path("ca.pem"), self._path("ca.key")
        self._openssl(
            "req", "-x509", "-subj", "/CN=quorate test authority", "-keyout", self._ca_key, "-out", self.ca_cert
        )
        self.cert, self.key = self.issue("server")
        self.client_cert, self.client_key = self.issue("client")

    def _path(self, name: str) -> str:
        return str(self._folder / name)

    def issue(self, name: str, *addresses: str, usage: str = "serverAuth,clientAuth", days: int = 2) -> tuple[str, str]:
        """Return the paths of a certificate for ``addresses`` (127.0.0.1 if none is given) and of its key."""
        names = ",".join(f"IP:{address}" for address in addresses or ("127.0.0.1",))
        cert, key, request, extra = (self._path(f"{name}.{suffix}") for suffix in ("pem", "key", "csr", "ext"))
        Path(extra).write_text(f"subjectAltName={names}\nextendedKeyUsage={usage}\n")
        self._openssl("req", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signer = ["-CA", self.ca_cert, "-CAkey", self._ca_key, "-CAcreateserial", "-extfile", extra]
        self._run("x509", "-req", "-in", request, *signer, "-days", str(days), "-out", cert)
        return cert, key

    def _openssl(self, *arguments: str) -> None:
        self._run(arguments[0], *_NEW_KEY, "-nodes", "-days", "2", *arguments[1:])

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=DEADLINE_SECONDS)
