"""Run a selector with a limit on its time; one that does not come back is left behind."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from flextopo.baselines.policies import GreedyCost
from flextopo.baselines.requeue import RequeueAware
from flextopo.baselines.wait_limit import WaitLimit
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.jit.kernels import kernel
from flextopo.cluster.state.arrays import TERMINATING, Cluster
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.in_range import InRange
from flextopo.policies.runtime import LearnedSelector

MAX_STUCK = 4
"""Threads that may hang before selectors are not even started any more."""

FALLBACK_FACTOR = 5
"""The baseline may take this many times the selector's budget before the answer is an error."""


PROMPT = (GreedyCost, RequeueAware)
"""Rules whose time is bounded for a pod alone: one search by a kernel."""
SLOWEST_S = 300e-6
"""Two such searches on one server at their slowest, where all pods hold GPUs: 8 asked of one full of 16 pods."""
MOST_WEIGHTS = 1_000_000
"""Numbers of a network whose forward pass takes milliseconds; shipped ones have 33,000."""


class UndecidableError(FlextopoError):
    """Report that neither the selector nor the baseline gave an answer that may be given."""


class SelectorTimeoutError(FlextopoError):
    """Report a selector that used up its time."""


def is_prompt(selector: VictimSelector) -> bool:
    """Say whether a selector is one of `PROMPT` or a small network; what is derived from these may do anything."""
    if type(selector) is WaitLimit:
        return is_prompt(selector.selector)
    if type(selector) is InRange:
        return is_prompt(selector.policy) and is_prompt(selector.rule)
    if type(selector) is LearnedSelector:
        return sum(weight.size for weight in selector.weights.values()) <= MOST_WEIGHTS
    return type(selector) in PROMPT


@kernel
def is_plain(c: Cluster, preemptor: int) -> bool:
    """Say whether the time of a search grows with servers alone.

    What a PodGroup loses takes time by the number of its members, and of a server's victims without GPUs there may
    be so many sets that it takes 10 ms.
    """
    for pod in range(c.pods.shape[0]):
        spec, live = c.pods[pod], c.live[pod]
        if spec["group"] >= 0:
            return False
        other = live["gpu_mask"] == 0 and live["node"] >= 0 and live["status"] != TERMINATING
        if other and spec["preemptible"] and spec["priority"] < c.pods[preemptor]["priority"]:
            return False
    return True


class _Job:
    """One decision in a thread; `finished` opens when there is a result or an error."""

    def __init__(self, selector: VictimSelector, state: ClusterState, preemptor: Pod) -> None:
        self.selector, self.state, self.preemptor = selector, state, preemptor
        self.result: Candidate | None = None
        self.error: Exception | None = None
        self.finished = threading.Lock()
        self.finished.acquire()

    def decide(self) -> None:
        try:
            self.result = self.selector.select(self.state, self.preemptor)
        except Exception as error:  # noqa: BLE001  it is raised in the caller's thread
            self.error = error
        except BaseException as error:  # noqa: BLE001  a model may not end the service
            self.error = RuntimeError(repr(error))
        self.finished.release()


class SelectorRunner:
    """A thread that runs selectors one at a time; another replaces it when it hangs.

    The threads are daemons, so that one that hangs does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] | None = None
        self._stuck: list[_Job] = []

    def select(
        self, selector: VictimSelector, state: ClusterState, preemptor: Pod, limit_s: float
    ) -> Candidate | None:
        """Let a selector choose.

        Args:
            selector: decides.
            state: what it sees; nobody else may change it, even after a timeout.
            preemptor: the pending pod.
            limit_s: seconds it may take.

        Raises:
            SelectorTimeoutError: it took longer, or too many before it still hang.
            Exception: whatever the selector raises.
        """
        if (
            state.num_nodes * SLOWEST_S <= limit_s
            and is_prompt(selector)
            and is_plain(state.arrays, preemptor.index)
        ):
            # Without a thread, which takes a tenth of a decision, and more of the slowest.
            return selector.select(state, preemptor)
        job = _Job(selector, state, preemptor)
        self._stuck = [job for job in self._stuck if job.finished.locked()]
        if len(self._stuck) >= MAX_STUCK:
            raise SelectorTimeoutError(
                f"selector {selector.name!r}: {len(self._stuck)} earlier decisions still run; "
                f"legal: below {MAX_STUCK}"
            )
        if self._jobs is None:
            self._jobs = SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), daemon=True).start()
        self._jobs.put(job)
        if not job.finished.acquire(timeout=limit_s):
            # The thread ends when the job does; the next decision gets a new one.
            self._jobs.put(None)
            self._jobs = None
            self._stuck.append(job)
            raise SelectorTimeoutError(
                f"selector {selector.name!r} took over {limit_s * 1000:.0f} ms; legal: less"
            )
        job.finished.release()
        if job.error is not None:
            raise job.error
        return job.result


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.decide()
