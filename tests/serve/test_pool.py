"""Which session a prompt gets: the longest beginning, by tokens and by text; what is in use is left alone."""

import pytest

from quamba_edge.errors import BadUsage
from quamba_edge.runtime.model import load
from quamba_edge.serve.pool import Pool, Prompt


@pytest.fixture(scope="module")
def model(bundle):
    return load(bundle, "reference")


@pytest.fixture
def pool(model):
    return Pool(model.session, model.tokenizer, 3)


def read(pool, ids, text=None):
    kept, ids = pool.take(Prompt(list(ids), text))
    start = kept.session.seek(ids).tokens
    kept.session.mark()
    if ids[start:]:
        kept.session.prefill(ids[start:])
    return kept, start


def test_the_longest_beginning_is_taken(pool):
    for ids in ([5, 6], [7, 8, 9]):
        pool.give(read(pool, ids)[0])
    kept, start = read(pool, [7, 8, 9, 10])
    assert start == 3 and kept.id == "s2" and kept.busy
    pool.give(kept)
    assert read(pool, [5, 6, 7])[1] == 2


def test_one_in_use_is_not_shared_but_its_snapshots_are(pool):
    busy, _ = read(pool, [5, 6])
    busy.session.mark()
    busy.session.prefill([7])
    other, start = read(pool, [5, 6, 8])
    assert other is not busy and start == 2 and busy.session.tokens == [5, 6, 7]


def test_an_edit_goes_on_from_a_branch(pool):
    kept, _ = read(pool, [5, 6])
    kept.session.mark()
    kept.session.prefill([7, 8])
    pool.give(kept)
    branch, start = read(pool, [5, 6, 9])
    assert start == 2 and branch is not kept and kept.session.tokens == [5, 6, 7, 8] and len(pool) == 2


def test_text_decides_where_tokens_do_not(pool, model):
    """The model said "ab" in one way, the tokenizer would say it in another: here, text that comes with other ids."""
    said = model.tokenizer.encode("Once")
    pool.give(read(pool, said)[0])
    kept, ids = pool.take(Prompt([50, 51], "Once more"))
    assert ids == said + model.tokenizer.encode(" more") and kept.session.tokens == said


def test_half_a_text_is_no_beginning(pool, model):
    pool.give(read(pool, model.tokenizer.encode("Once"))[0])
    kept, ids = pool.take(Prompt([50, 51], "Onc"))
    assert ids == [50, 51] and not kept.session.tokens


def test_full_of_busy_ones_it_refuses_and_empty_ones_go(pool):
    taken = [pool.take(Prompt([i]))[0] for i in (5, 6, 7)]
    with pytest.raises(BadUsage, match="--max-sessions"):
        pool.take(Prompt([8]))
    for kept in taken:
        pool.give(kept)  # nothing was read
    assert len(pool) == 0
    with pytest.raises(BadUsage):
        Pool(lambda: None, None, 0)


def test_names(pool):
    kept, _ = read(pool, [5])
    with pytest.raises(BadUsage, match="in use"):
        pool.find(kept.id)
    pool.give(kept)
    assert pool.find(kept.id) is kept
    pool.drop(kept.id)
    with pytest.raises(BadUsage, match="/v1/sessions"):
        pool.find(kept.id)
