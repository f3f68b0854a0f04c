"""The shipped policy as a rule that can be read: seven terms, and the candidate of the least penalty is taken.

`flextopo compare --selectors examples.distilled_rule:RULE,requeue-aware` plays it. `python -m
flextopo.train.distil` found the weights; another policy gives others. Takes seconds.
"""

import argparse

import flextopo
from flextopo.policies.linear_rule import LinearRule

RULE = LinearRule(
    "distilled",
    {
        "dearer": 1.0,
        "largest_victim": 0.331,
        "evictable_after": 1.198,
        "since_checkpoint": 1.397,
        "middle_class": 0.6,
        "gpus_without_place": 0.209,
        "youngest_victim": 0.112,
    },
)


def main():
    """Print the rule, and compare it with the policy and with the strongest simple rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", default="16*rtx4090")
    parser.add_argument("--seeds", type=int, default=10, help="days")
    options = parser.parse_args()
    print(RULE)
    names = [RULE, "requeue-aware", "greedy-cost", "deepset-imitation@0"]
    print(flextopo.compare(names, servers=options.servers, seeds=options.seeds).summary())


if __name__ == "__main__":
    main()
