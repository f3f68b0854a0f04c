"""What may go wrong for a while: the agent says it, waits and tries again."""

from __future__ import annotations

from flextopo.cluster.errors import FlextopoError


class KubeletError(FlextopoError):
    """Report that kubelet does not answer, or not as it should."""


class ApiserverError(FlextopoError):
    """Report that the apiserver does not answer, or refuses.

    Attributes:
        status: of HTTP, 0 where no answer came.
        wait_s: how long it asks to be left alone.
    """

    def __init__(self, about: str, status: int = 0, wait_s: float = 0.0) -> None:
        super().__init__(about)
        self.status, self.wait_s = status, wait_s
