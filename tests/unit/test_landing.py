"""Where kubelet may put a pod."""

from itertools import combinations

import pytest

from flextopo.policies.serving.landing import _choices


@pytest.mark.parametrize(
    "where", [(), (0,), (0, 0, 1, 1), (3, 2, 1, 0), (0, 0, 0, 1, 1, 2), (0,) * 8 + (1,) * 8]
)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_of_gpus_that_lie_alike_one_is_as_good_as_another(
    where: tuple[int, ...], count: int
) -> None:
    """Of 16 GPUs on two sockets 8 are chosen in 9 ways, not in 12,870."""
    places = sorted(set(where))
    alike = [[i for i, here in enumerate(where) if here == place] for place in places]
    numbers = sorted(range(len(where)), key=lambda i: where[i])
    expected = dict.fromkeys(tuple(where[i] for i in some) for some in combinations(numbers, count))
    assert [tuple(where[i] for i in some) for some in _choices(alike, count)] == list(expected)
