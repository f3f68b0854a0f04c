"""Whether certificates of a server and a client fit each other, tried out by a TLS handshake in memory."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

ROUNDS = 20
"""More than any handshake takes."""


def server_context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """Return the extender's side, which wants a certificate of whoever asks.

    Raises:
        OSError: a file is no PEM file, cannot be read, or the key is of another certificate.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client_ca))
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    ca: Path, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return kube-scheduler's side, with or without a certificate of its own.

    Raises:
        OSError: a file is no PEM file, cannot be read, or the key is of another certificate.
    """
    context = ssl.create_default_context(cafile=str(ca))
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> dict[str, Any]:
    """Let a client that expects `name` connect to a server; nothing leaves the process.

    Returns:
        The server's certificate as the client sees it, as of `ssl.SSLSocket.getpeercert`.

    Raises:
        ssl.SSLError: one of them refuses the other; an `SSLCertVerificationError` says why.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    waiting = [asking, server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(ROUNDS):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
        if not waiting:
            return dict(asking.getpeercert() or {})
    raise ssl.SSLError("the handshake does not end")
