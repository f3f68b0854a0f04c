"""Record a cluster that is watched, until it is enough."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.serving.kube import KubeWatch, connect
from flextopo.policies.serving.recording import Recorder


def record_cluster(path: Path, seconds: float | None) -> int:
    """Record the cluster around, or of KUBECONFIG.

    Args:
        path: of the file, which appears when the recording is complete.
        seconds: how long, None = until SIGINT or SIGTERM.

    Returns:
        How many lines were written.

    Raises:
        FlextopoError: there is no cluster, or the file cannot be written.
    """
    client = connect()
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as out:
            recorder = Recorder(out)
            watch = KubeWatch(client, recorder)
            asyncio.run(_follow(watch, seconds))
        if not watch.ready():
            why = f" ({' '.join(watch.trouble.split())})" if watch.trouble else ""
            raise FlextopoError(
                f"the cluster did not tell all that is watched{why}; nothing was recorded"
            )
        unfinished.replace(path)
    except OSError as error:
        raise FlextopoError(f"{path}: {error.strerror}; legal: a file in a folder") from None
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return recorder.lines


async def _follow(watch: KubeWatch, seconds: float | None) -> None:
    following = asyncio.ensure_future(watch.follow())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, following.cancel)
    with suppress(asyncio.CancelledError, TimeoutError):
        async with asyncio.timeout(seconds):
            await following
