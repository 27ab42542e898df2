"""Our model class as lm-eval sees it: with lm-eval where it is installed, else with a stand-in of its interface."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge import harness
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.runtime.session import Engine
from quamba_edge.runtime.tokenizer import Tokenizer
from quamba_edge.tasks.tokens import Request, request
from tests.apps import tiny_bundle


class StandIn:
    """What lm-eval's TemplateLM gives and asks for (lm_eval/api/model.py), without its tokenization."""

    def __init__(self):
        self.cached = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *entry: self.cached.append(entry))

    def loglikelihood(self, requests, disable_tqdm=False):
        pairs = [(r.args, *map(self.tok_encode, r.args)) for r in requests]
        return self._loglikelihood_tokens([(w, c or [self.prefix_token_id], a) for w, c, a in pairs])


def base(name):
    if name == "stand-in":
        return StandIn
    return pytest.importorskip("lm_eval.api.model", reason="lm-eval is not installed: pip install lm-eval").TemplateLM


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("harness") / "tiny.qedge")


@pytest.fixture(params=["stand-in", "lm-eval"])
def lm(request, bundle):
    made = harness.model_class(base(request.param))(bundle=str(bundle), backend="reference", batch_size=1, device=None)
    yield made
    made.opened.close()


def asked(*pairs):
    return [SimpleNamespace(args=p) for p in pairs]


def chances(bundle, ids):
    """log p of each but the first, in one go."""
    return Engine(tiny_bundle.in_memory(), "reference", "f16").score(np.array([ids]))[0]


def test_loglikelihood(lm, bundle):
    words = Tokenizer(tiny_bundle.TOKENIZER)
    found = lm.loglikelihood(asked(("A fox", " ran"), ("", " It is."), ("A fox", " sat")), disable_tqdm=True)
    whole = chances(bundle, words.encode("A fox ran"))
    assert found[0][0] == pytest.approx(whole[4:].sum(), abs=0.05) and [g for _, g in found] == [False] * 3
    assert found[1][0] == pytest.approx(chances(bundle, [0, *words.encode(" It is.")]).sum(), abs=0.05)


def test_a_whole_text_is_scored_after_the_token_that_begins_texts(lm, bundle):
    ids = Tokenizer(tiny_bundle.TOKENIZER).encode("A fox ran by")
    (found,) = lm.loglikelihood_rolling(asked(("A fox ran by",)))
    assert found == pytest.approx(chances(bundle, [0, *ids]).sum(), abs=0.05)


def test_greedy_continuation_stops_where_it_should(lm):
    whole = lm._continue("A fox", {"max_gen_toks": 12})
    assert len(whole) == 12 or lm.target.ends  # one letter a token
    (text,) = lm.generate_until(asked(("A fox", {"until": [whole[3:5]], "max_gen_toks": 12, "do_sample": False})))
    assert text == whole[: whole.index(whole[3:5])]
    assert lm.generate_until(asked(("A fox", {"until": whole[0], "max_gen_toks": 12}))) == [""]
    lm.target = SimpleNamespace(**{**vars(lm.target), "ends": frozenset(lm.tok_encode(whole[2]))})
    assert lm._continue("A fox", {"max_gen_toks": 12}) == whole[: whole.index(whole[2])]
    with pytest.raises(BadUsage, match="only greedy"):
        lm.generate_until(asked(("A fox", {"do_sample": True, "temperature": 0.7})))


def test_long_contexts_are_cut_where_the_model_args_say_so(lm):
    pairs = asked(("A fox sat in the wood", " and ran"), ("in the wood", " and ran"))
    whole = lm.loglikelihood(pairs)
    lm.max_length = len("in the wood and ran") - 1
    cut = lm.loglikelihood(pairs)
    assert cut[1] == whole[1] and cut[0][0] == pytest.approx(cut[1][0], abs=1e-4)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12))
def test_windows_predict_every_token_once(ids, length):
    pieces = harness._windows(ids, 99, length)
    assert [t for p in pieces for t in p.continuation] == ids
    for p in pieces:
        assert len(p.context) + len(p.continuation) - 1 <= length and p.context
    try:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError:
        return
    theirs = map(make_disjoint_window, get_rolling_token_windows(ids, 99, length, 1))
    assert pieces == [Request(tuple(c), tuple(a)) for c, a in theirs]


@given(st.text(alphabet="ab .\n", max_size=12), st.text(alphabet="ab .\n", min_size=1, max_size=8))
def test_ids_are_split_as_in_lm_eval(context, continuation):
    made = object.__new__(harness.model_class(base("lm-eval")))
    words = Tokenizer(tiny_bundle.TOKENIZER)
    made.target = SimpleNamespace(tokenizer=words, prefix=0, ends=frozenset())
    seen = []
    made._loglikelihood_tokens = lambda requests, **kw: seen.extend(requests)
    if not context.strip() and context:
        return  # lm-eval asks for an empty context there; ours refuses it
    made.loglikelihood(asked((context, continuation)), disable_tqdm=True)
    assert request(words.encode, 0, context, continuation) == Request(*map(tuple, seen[0][1:]))


def test_lm_eval_knows_it_by_name():
    registry = pytest.importorskip("lm_eval.api.registry", reason="lm-eval is not installed: pip install lm-eval")
    assert harness.register() is harness.register() is registry.get_model("quamba_edge")


def test_without_lm_eval_it_says_how_to_get_it(monkeypatch):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Missing, match=r"pip install 'quamba-edge\[eval\]'"):
        harness.register()
    with pytest.raises(SystemExit, match="lm-eval is not here"):
        harness.main()


def test_model_args_name_one_model(bundle):
    made = harness.model_class(StandIn)
    for wrong in ({}, {"bundle": str(bundle), "checkpoint": "x"}, {"bundle": "none.qedge"}):
        with pytest.raises(BadUsage):
            made(**wrong)
