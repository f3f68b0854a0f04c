"""A small client of the apiserver: one connection, JSON in and out.

The standard library's client, since a process on every node pays for each megabyte: lightkube, which
the service uses, costs 21 MiB, this 2.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from flextopo import __version__
from flextopo.cluster.errors import FlextopoError
from flextopo.policies.agent.errors import ApiserverError

TIMEOUT_S = 10.0
IDLE_S = 10.0
"""A connection that was not used for so long may be dead, and is made anew."""
MERGE_PATCH = "application/merge-patch+json"
_SENT = {"Accept": "application/json", "User-Agent": f"flextopo-agent/{__version__}"}
"""Its name, up to the slash, is what the apiserver keeps as the manager of the fields written."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Access:
    """How to reach an apiserver.

    Attributes:
        server: its address, with `http` or `https`.
        token: a bearer token, empty = none.
        token_file: a file with one, which is read anew for every connection and after a refusal.
        basic: user and password, joined by a colon.
        tls: of `https`; made once, since it holds the authority's certificates.
    """

    server: str
    token: str = ""
    token_file: Path | None = None
    basic: str = ""
    tls: ssl.SSLContext | None = field(default=None, compare=False)

    def headers(self) -> dict[str, str]:
        """Return what says who is asking.

        Raises:
            ApiserverError: the token's file cannot be read.
        """
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except OSError as error:
                raise ApiserverError(
                    f"{self.token_file}: {error.strerror}; legal: a file with a token"
                ) from None
        if self.basic:
            return {"Authorization": f"Basic {b64encode(self.basic.encode()).decode()}"}
        return {"Authorization": f"Bearer {token}"} if token else {}


def find_access(environment: Mapping[str, str] = os.environ) -> Access:
    """Find the cluster: that of KUBECONFIG, else the one around this pod.

    Raises:
        FlextopoError: neither tells of a cluster.
    """
    if environment.get("KUBECONFIG"):
        from flextopo.policies.agent.kubeconfig import read_kubeconfig

        return read_kubeconfig(Path(environment["KUBECONFIG"]))
    host, port = (environment.get(f"KUBERNETES_SERVICE_{end}", "") for end in ("HOST", "PORT"))
    authority = SERVICE_ACCOUNT / "ca.crt"
    if not host or not authority.exists():
        raise FlextopoError("no cluster around; legal: inside a pod, or with KUBECONFIG set")
    address = f"[{host}]" if ":" in host else host
    tls = ssl.create_default_context(cafile=authority)
    return Access(f"https://{address}:{port or 443}", "", SERVICE_ACCOUNT / "token", "", tls)


class Apiserver:
    """One connection, made anew where it is lost.

    Args:
        access: where, and who is asking.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._connection: http.client.HTTPConnection | None = None
        self._used_at = 0.0

    def get(self, path: str, kind: type[Kind], **headers: str) -> Kind | None:
        """Return an object as a struct; None where there is none.

        Raises:
            ApiserverError: no answer, a refusal, or an object of another form.
        """
        try:
            content = self._request("GET", path, None, headers)
        except ApiserverError as error:
            if error.status == 404:
                return None
            raise
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ApiserverError(
                f"GET {path}: {error}; legal: the JSON of a Kubernetes object"
            ) from None

    def create(self, path: str, document: Mapping[str, Any]) -> None:
        """Create an object.

        Raises:
            ApiserverError: no answer, or a refusal.
        """
        self._request("POST", path, document, {"Content-Type": "application/json"})

    def patch(self, path: str, patch: Mapping[str, Any]) -> None:
        """Change an object by a merge patch, in which None deletes a field.

        Raises:
            ApiserverError: no answer, or a refusal.
        """
        self._request("PATCH", path, patch, {"Content-Type": MERGE_PATCH})

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> bytes:
        data = None if body is None else msgspec.json.encode(body)
        sent = {**_SENT, **self._access.headers(), **headers}
        if time.monotonic() - self._used_at > IDLE_S:
            self.close()
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._used_at = time.monotonic()
            self._connection.request(method, self._prefix + path, data, sent)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            about = str(error) or type(error).__name__
            raise ApiserverError(
                f"{method} {path}: {about}; legal: an apiserver at {self._access.server}"
            ) from None
        if answer.status >= 300:
            # A refusal may come from a load balancer that should be left.
            self.close()
            told = answer.headers.get("Retry-After", "")
            wait_s = float(told) if re.fullmatch("[0-9]{1,4}", told) else 0.0
            raise ApiserverError(
                f"{method} {path}: status {answer.status}, {_reason(content)}; legal: 200 or 201",
                answer.status,
                wait_s,
            )
        return content

    @property
    def _prefix(self) -> str:
        return urlsplit(self._access.server).path.rstrip("/")

    def _connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self._access.server)
        host, port = address.hostname or "", address.port
        if address.scheme == "http":
            return http.client.HTTPConnection(host, port or 80, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(
            host, port or 443, timeout=TIMEOUT_S, context=self._access.tls
        )


def _reason(content: bytes) -> str:
    """Return why an answer is a refusal, in a few words."""
    try:
        told = json.loads(content).get("message", "")
    except (ValueError, AttributeError):
        told = content[:80].decode(errors="replace")
    return str(told).partition("\n")[0][:200] or "no reason"
