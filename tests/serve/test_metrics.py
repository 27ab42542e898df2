"""The page is what Prometheus reads: cumulative buckets, escaped labels, and no zero for what is not known."""

import re

from quamba_edge.serve.metrics import Counter, Histogram, Metrics

LINE = re.compile(r'^[a-z_:]+(\{([a-z_]+="([^"\\\n]|\\.)*",?)*\})? (\+Inf|-?[0-9.e+-]+)$')


def test_every_line_of_the_page_is_well_formed():
    metrics = Metrics()
    metrics.requests.add(route="/v1/models", code="200")
    metrics.ended.add(how='a "b"\n\\c')
    metrics.first_token.observe(0.3)
    page = metrics.text([("quamba_power_watts", "Draw.", {(("of", "VDD_IN"),): 4.5}), ("absent", "x", {(): None})])
    for line in page.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.match(line), line
    assert 'quamba_power_watts{of="VDD_IN"} 4.5' in page and "absent" not in page
    assert 'how="a \\"b\\"\\n\\\\c"' in page
    assert page.endswith("\n")


def test_buckets_are_cumulative_and_a_bound_belongs_to_its_bucket():
    histogram = Histogram("h", "x", (1, 2))
    for value in (0.5, 1, 1.5, 2, 9):
        histogram.observe(value)
    assert histogram.lines() == [
        'h_bucket{le="1"} 2',
        'h_bucket{le="2"} 4',
        'h_bucket{le="+Inf"} 5',
        "h_sum 14",
        "h_count 5",
    ]


def test_a_counter_begins_at_zero_and_sums_over_labels():
    counter = Counter("c", "x")
    assert counter.lines() == ["c 0"] and counter.total == 0
    counter.add(2, kind="a")
    counter.add(kind="b")
    assert counter.total == 3 and counter.lines() == ['c{kind="a"} 2', 'c{kind="b"} 1']
