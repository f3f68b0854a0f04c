"""Freeze a version of FlexTopo-Bench: the digest of every world, and the loss of the par rule there.

Once a version: what it writes is what every result is held against. A second run of the same version has
to write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from flextopo.cluster.files import write_whole
from flextopo.train.benchmark.playing import play_game
from flextopo.train.benchmark.tracks import FROZEN, PAR, TRACKS, VERSION
from flextopo.train.benchmark.worlds import game_digest


def main() -> None:
    """Play the par rule on every game of every track."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="files of the recorded track")
    parser.add_argument("--out", type=Path, default=FROZEN)
    options = parser.parse_args()
    tracks = {}
    for name, track in TRACKS.items():
        config = track.config(PAR, options.traces)
        jobs = [(config, game) for game in track.games()]
        tracks[name] = {
            "digests": [game_digest(job) for job in jobs],
            "par": [play_game(job)["weighted_loss"] for job in jobs],
        }
        print(f"{name}: {len(jobs)} games", file=sys.stderr)
    text = json.dumps({"version": VERSION, "tracks": tracks}, separators=(",", ":"))
    write_whole(options.out, (text + "\n").encode())


if __name__ == "__main__":
    main()
