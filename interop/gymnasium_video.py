"""Record a day as a video with RecordVideo of Gymnasium, which needs moviepy."""

import tempfile
from pathlib import Path

import gymnasium
from gymnasium.wrappers import RecordVideo

import flextopo  # noqa: F401


def main():
    """Record."""
    env = gymnasium.make("flextopo/Preempt-RTX4090-v0", render_mode="rgb_array")
    with tempfile.TemporaryDirectory() as folder:
        recorded = RecordVideo(env, folder, episode_trigger=lambda _: True, disable_logger=True)
        recorded.reset(seed=0)
        frames, over = 1, False
        while not over:
            _, _, _, over, _ = recorded.step(0)
            frames += 1
        recorded.close()
        (video,) = Path(folder).glob("*.mp4")
        size = video.stat().st_size
    assert size > 1000, size
    print(f"{frames} frames, {size} bytes")


if __name__ == "__main__":
    main()
