"""The rights that the service needs, and whether its accounts have them."""

from __future__ import annotations

from dataclasses import dataclass

from flextopo.policies.serving.kube import OPTIONAL, WATCHED
from flextopo.policies.serving.leases import NAME as LEASE
from flextopo.policies.serving.reader import Document, Reader

EXTENDER, CONTROLLER = "flextopo", "flextopo-controller"
"""Names of the service accounts."""


@dataclass(frozen=True)
class Right:
    """What an account may do.

    Attributes:
        account: name of the service account.
        group: of the API, empty = core.
        resource: such as `pods/status`.
        verb: such as `patch`.
        optional: the service works without it.
    """

    account: str
    group: str
    resource: str
    verb: str
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.account}: {self.verb} {self.resource} of {self.group or 'core'}"


CONTROLS = (
    Right(CONTROLLER, "", "pods/status", "patch"),
    Right(CONTROLLER, "", "pods/eviction", "create"),
    Right(CONTROLLER, "events.k8s.io", "events", "create"),
    *(
        Right(CONTROLLER, "resource.k8s.io", resource, verb, optional=True)
        for resource, verb in (
            ("devicetaintrules", "list"),
            ("devicetaintrules", "create"),
            ("devicetaintrules", "delete"),
            ("deviceclasses", "get"),
            ("resourceclaims/status", "patch"),
            ("resourceclaims/binding", "patch"),
        )
    ),
    Right(CONTROLLER, "coordination.k8s.io", "leases", "create"),
    Right(CONTROLLER, "coordination.k8s.io", "leases", "get"),
    Right(CONTROLLER, "coordination.k8s.io", "leases", "update"),
)
"""What the controller does beside watching."""


def rights_needed(controller: bool) -> list[Right]:
    """Return the rights that the extender needs, and those of the controller where there is one."""
    watched = [
        Right(account, kind._api_info.resource.group, kind._api_info.plural, verb, kind in OPTIONAL)
        for account in ((EXTENDER, CONTROLLER) if controller else (EXTENDER,))
        for kind in WATCHED
        for verb in ("list", "watch")
    ]
    return [*watched, *(CONTROLS if controller else ())]


async def has_right(reader: Reader, namespace: str, right: Right) -> bool:
    """Ask the apiserver whether an account of a namespace may do something.

    Raises:
        httpx2.HTTPError: whoever asks may not ask that, or the apiserver does not answer.
    """
    plural, _, subresource = right.resource.partition("/")
    about = {
        "group": right.group,
        "resource": plural,
        "subresource": subresource,
        "verb": right.verb,
    }
    if plural == "leases":
        about |= {"namespace": namespace, "name": "" if right.verb == "create" else LEASE}
    accounts = "system:serviceaccounts"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{right.account}",
            "groups": [accounts, f"{accounts}:{namespace}", "system:authenticated"],
            "resourceAttributes": about,
        },
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    said: Document = (await reader.ask(path, review)).json()
    return bool((said.get("status") or {}).get("allowed"))
