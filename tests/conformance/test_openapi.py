"""What the OpenAPI document says is what the service does, whatever is sent to it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from kube_objects import full_node, make_cache

from flextopo.baselines.registry import make_selector
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.service import Service, make_app
from flextopo.policies.serving.telemetry import Telemetry

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

FALLBACK = make_selector("flextopo-best-effort")
CACHE = make_cache(full_node())
TELEMETRY = Telemetry(CACHE, write=lambda _: None)
DECIDER = Decider(CACHE, make_selector("greedy-cost"), FALLBACK, budget_s=60)
SERVICE = Service(
    make_selector("greedy-cost"), FALLBACK, TELEMETRY, Extender(DECIDER, TELEMETRY), budget_s=60
)
schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(SERVICE))


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_follow_the_document(case: Any) -> None:
    # A body may be of the right form and still be refused: a quantity, a name, a number out of range.
    case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])
