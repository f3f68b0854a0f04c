"""The one error tree: messages name the offending value, its place and what was legal."""

from __future__ import annotations

MAX_MESSAGE = 4000
"""Characters of a message: what it quotes from a file may be as long as the file."""


class FlextopoError(ValueError):
    """Report a user's mistake in one sentence; the command line prints it and exits with status 2."""

    def __str__(self) -> str:
        text = super().__str__()
        half = MAX_MESSAGE // 2
        return text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}"


class TopologyError(FlextopoError):
    """Report a server topology that cannot be read or is not a legal FlexTopo graph."""


class WorkloadError(FlextopoError):
    """Report a trace, tape or workload parameter that is missing or illegal."""


class PodError(FlextopoError):
    """Report an illegal pod, placement or victim."""


class UnknownNameError(FlextopoError):
    """Report a name that is in none of the registries."""

    def __init__(self, kind: str, name: str, legal: list[str] | tuple[str, ...]) -> None:
        super().__init__(f"unknown {kind} {name!r}; legal: {', '.join(sorted(legal))}")
        self.kind, self.name, self.legal = kind, name, legal

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[object, ...]]:
        """Pickle, so that a worker process can raise it."""
        return type(self), (self.kind, self.name, self.legal)
