"""Read the part of a kubeconfig that an agent outside of a pod needs, such as kubelet's own."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from pathlib import Path
from typing import Any

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.agent.apiserver import Access

_KNOWN = {
    "token", "tokenFile", "username", "password",
    "client-certificate", "client-certificate-data", "client-key", "client-key-data",
}  # fmt: skip


def read_kubeconfig(path: Path) -> Access:
    """Read how to reach the cluster of a kubeconfig's current context.

    Args:
        path: the file; paths in it are relative to its folder.

    Raises:
        FlextopoError: it cannot be read, names no cluster, or wants a program to log in.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
        context = _named(document, "contexts", document["current-context"])["context"]
        cluster = _named(document, "clusters", context["cluster"])["cluster"]
        user = _named(document, "users", context["user"])["user"] or {}
        server = str(cluster["server"])
    except OSError as error:
        raise FlextopoError(f"KUBECONFIG {path}: {error.strerror}; legal: a kubeconfig") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, StopIteration):
        raise FlextopoError(
            f"KUBECONFIG {path}: names no cluster; legal: a current-context with cluster and user"
        ) from None
    other = sorted(user.keys() - _KNOWN)
    if other:
        raise FlextopoError(
            f"KUBECONFIG {path}: its user logs in with {other[0]!r}; legal: a token or a certificate"
        )
    try:
        tls = _tls(path.parent, cluster, user) if server.startswith("https:") else None
    except (OSError, ValueError) as error:
        raise FlextopoError(
            f"KUBECONFIG {path}: a certificate cannot be read ({error}); legal: PEM"
        ) from None
    token_file = user.get("tokenFile")
    return Access(
        server=server,
        token=str(user.get("token", "")),
        token_file=path.parent / token_file if token_file else None,
        basic=f"{user['username']}:{user.get('password', '')}" if "username" in user else "",
        tls=tls,
    )


def _named(document: Any, kind: str, name: str) -> Any:
    return next(entry for entry in document[kind] if entry["name"] == name)


def _tls(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    tls = ssl.create_default_context()
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    elif data := _pem(folder, cluster, "certificate-authority"):
        tls = ssl.create_default_context(cadata=data)
    certificate, key = (_pem(folder, user, name) for name in ("client-certificate", "client-key"))
    if certificate and key:
        # Python's ssl reads a client's certificate from a file only; 0600, and gone at once.
        handle, name = tempfile.mkstemp()
        try:
            with open(handle, "w") as file:
                file.write(f"{certificate}\n{key}\n")
            tls.load_cert_chain(name)
        finally:
            os.unlink(name)
    return tls


def _pem(folder: Path, entry: dict[str, Any], name: str) -> str:
    """Return a certificate or key that is given by file or as it is, empty = none."""
    if f"{name}-data" in entry:
        return base64.b64decode(entry[f"{name}-data"]).decode()
    return (folder / entry[name]).read_text() if entry.get(name) else ""
