"""The names of the settings of TLS, and what each is; how they are used is in ``_tls``."""

from __future__ import annotations

#: The settings of TLS, which is used where one of them is given.
TLS_SETTINGS = {
    "ca_cert": "file with the certificates that the store's host is checked against (TLS); default: the system's",
    "cert": "file with this node's certificate (TLS); needed by a node that hosts the store; default: none",
    "key": "file with the key of `cert`; default: none",
    "client_cert_auth": "the host takes only nodes whose certificate `ca_cert` has signed; default: false",
}
