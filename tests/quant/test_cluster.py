"""Sort-and-cluster: the cuts are the cheapest there are, and the permutation is a valid one."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.quant.cluster import cheapest, cut, group_max, run_costs, sort_and_cluster


def price(profile, ends):
    return sum((b - a) * profile[b - 1] ** 2 for a, b in zip([0, *ends], ends, strict=False))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.integers(1, 4))
def test_cuts_are_the_cheapest_of_all(values, parts):
    profile, n = np.sort(np.array(values)), len(values)
    ends = cut(run_costs(profile), parts)
    options = [[*c, n] for k in range(min(parts, n)) for c in combinations(range(1, n), k)]
    best = min(price(profile, o) for o in options)
    assert ends[-1] == n and ends == sorted(set(ends)) and len(ends) <= parts
    assert np.isclose(price(profile, ends), best) and np.isclose(cheapest(profile[None], parts)[0], best)


@given(st.sampled_from([(4, 1), (8, 2), (6, 3), (3, 1)]), st.integers(1, 20), st.integers(0, 50))
def test_heads_stay_in_their_ssd_group_and_channels_in_their_head(shape, width, seed):
    (heads, groups), rng = shape, np.random.default_rng(seed)
    magnitude = rng.lognormal(size=(heads, width))
    made = sort_and_cluster(magnitude, groups)
    per = heads // groups
    assert sorted(made.heads) == list(range(heads)) and (made.heads // per == np.arange(heads) // per).all()
    assert sorted(made.channels) == list(range(heads * width))
    assert (made.channels // width == np.repeat(made.heads, width)).all()
    assert (made.head_ends[:, -1] == per).all() and (made.chan_ends[..., -1] == width).all()
    assert (np.diff(made.chan_ends, axis=2) >= 0).all()
    for i in range(heads):  # scales_of agrees with the tables that a kernel would look up
        s, inside = divmod(i, per)
        j = int((made.head_ends[s] <= inside).sum())
        for p in range(width):
            c = int((made.chan_ends[s, j] <= p).sum())
            assert made.scales_of[i * width + p] == (s * 4 + j) * 4 + c


def test_groups_separate_loud_channels_and_cost_less_than_one_scale():
    rng = np.random.default_rng(0)
    magnitude = rng.lognormal(sigma=0.2, size=(16, 32))
    magnitude[:, 5] *= 20
    magnitude[3] *= 10
    made = sort_and_cluster(magnitude, 1)
    new = magnitude.reshape(-1)[made.channels]
    grouped = group_max(new, made.scales_of)
    assert (grouped >= new).all()
    assert (grouped**2).sum() < 0.2 * magnitude.max() ** 2 * magnitude.size
