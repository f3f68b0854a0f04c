"""Compare schedulers on recorded demand and recorded jobs: two CSV files.

Without files of yours, two small ones are written to --out first. Takes seconds.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

import flextopo


def write_files(folder):
    """Write two days of three services (requests/s by ten minutes) and of 300 batch jobs."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    services, jobs = folder / "services.csv", folder / "jobs.csv"
    with services.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["service", "t_s", "rate_rps"])
        for service, peak_h in (("chat", 15), ("code", 11), ("nightly", 3)):
            for t_s in range(0, 2 * 86400, 600):
                wave = np.cos(2 * np.pi * (t_s / 3600 - peak_h) / 24)
                rows.writerow([service, t_s, f"{np.exp(wave + 0.3 * rng.normal()):.3f}"])
    with jobs.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["submit_s", "duration_s", "gpus"])
        for submit_s in sorted(rng.integers(0, 2 * 86400, 300).tolist()):
            rows.writerow([submit_s, int(rng.lognormal(8, 1.5)), rng.choice([1, 1, 1, 2, 4, 8])])
    return services, jobs


def main():
    """Compare, and print the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=Path, help="columns service, t_s, rate_rps")
    parser.add_argument("--batch", type=Path, help="columns submit_s, duration_s, gpus")
    parser.add_argument("--out", type=Path, default=Path("runs/trace"), help="for files made here")
    parser.add_argument("--seeds", type=int, default=10, help="each plays another stretch")
    options = parser.parse_args()
    services, batch = options.services, options.batch
    if services is None or batch is None:
        services, batch = write_files(options.out)
    names = ("godel", "flextopo-best-effort", "greedy-cost", "deepset-imitation")
    trace = flextopo.load_trace(services, batch)
    found = flextopo.compare(names, servers="4*rtx4090", seeds=options.seeds, trace=trace)
    for name, against in found.results["paired"].items():
        low, high = 100 * against["low"], 100 * against["high"]
        print(f"{name:22} {100 * against['mean']:+.2f} points [{low:+.2f}, {high:+.2f}]")


if __name__ == "__main__":
    main()
