"""Verify finds what it is for: a damaged answer, a backend whose op is wrong, and it names which."""

from dataclasses import replace

import numpy as np
import pytest

from quamba_edge.apps.verify import LOGIT_ABS, summary, verify
from quamba_edge.backends.base import Block
from quamba_edge.backends.reference import ReferenceBackend, array_of
from quamba_edge.errors import BadUsage, HashMismatch
from quamba_edge.ops.program import Program
from tests.apps import tiny_bundle


class Other(ReferenceBackend):
    """A second backend: the reference under another name, with one op bent by `bend(result)`."""

    name = "other"

    def __init__(self, op="", bend=lambda result: result):
        super().__init__()
        self.op, self.bend = op, bend

    def record(self, program: Program, weights, buffers, states):
        def bent(op):
            def meaning(**given):
                results = op.reference(**given)
                return tuple(map(self.bend, results)) if isinstance(results, tuple) else self.bend(results)

            return replace(op, reference=meaning)

        steps = tuple(replace(s, op=bent(s.op)) if s.op.name == self.op else s for s in program.steps)
        return super().record(replace(program, steps=steps), weights, buffers, states)


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def bundle(request, tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("v") / "tiny.qedge", request.param)


def test_a_good_bundle_on_the_reference(bundle):
    result = verify(bundle, "reference")
    assert result.ok and result.differences == [] and result.ops is None
    assert (result.prompts, result.tokens, result.near_ties) == (1, 8, 0)
    assert "nothing to compare" in summary(result)


def test_a_good_backend_has_every_op_compared(bundle):
    told = []
    result = verify(bundle, Other(), progress=lambda *told_now: told.append(told_now))
    assert result.ok and result.ops > 10 and f"{result.ops} ops as the reference" in summary(result)
    assert [t[:2] for t in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def scaled(result):
    return result * result.dtype.type(1.01) if result.dtype.kind == "f" else result


def shifted(result):
    return np.clip(result.astype(int) + 2, -127, 127).astype(np.int8) if result.dtype == np.int8 else result


def broken(result):
    return np.full_like(result, np.nan) if result.dtype.kind == "f" else result


BENT = [
    ("linear_w4a8", scaled),
    ("conv_silu_i8", shifted),
    ("hadamard_i8", shifted),
    ("linear_w4a8", broken),
    ("embed_w4", scaled),
]


@pytest.mark.filterwarnings("ignore:invalid value")  # the NaN that one of them makes, rounded
@pytest.mark.parametrize(("op", "bend"), BENT)
def test_a_wrong_op_is_named_and_no_other(bundle, op, bend):
    result = verify(bundle, Other(op, bend))
    named = [d for d in result.differences if not d.startswith("golden")]
    assert not result.ok and named and all(d.startswith(f"{op} at ") for d in named)
    assert summary(result) == "\n".join(result.differences)


def test_a_wrong_state_is_found_too(bundle):
    op = "scan_i8" if verify(bundle, Other("scan_i8", scaled)).differences else "ssd_i8"
    result = verify(bundle, Other(op, scaled))
    assert any(d.startswith(f"{op} at layers.0") for d in result.differences)


def test_one_code_off_here_and_there_is_rounding(bundle):
    def tipped(result):
        if result.dtype != np.int8:
            return result
        copy = result.copy()
        copy.flat[0] = copy.flat[0] - 1 if copy.flat[0] > 0 else copy.flat[0] + 1
        return copy

    result = verify(bundle, Other("conv_silu_i8", tipped))
    assert not [d for d in result.differences if d.startswith("conv_silu_i8")]


def golden(family="mamba2"):
    return tiny_bundle.golden(tiny_bundle.in_memory(family))


def test_another_token_is_named_with_its_place(tmp_path):
    good = golden()
    wrong = {**good, "tokens": [*good["tokens"][:2], (good["tokens"][2] + 1) % 50, *good["tokens"][3:]]}
    result = verify(tiny_bundle.write(tmp_path / "t.qedge", golden=[good, wrong]), "reference")
    assert len(result.differences) == 1 and result.prompts == 2
    assert result.differences[0].startswith("golden prompt 2, position 2: found token ")
    assert result.differences[0].endswith(f"expected token {wrong['tokens'][2]}")


def test_another_logit_is_named(tmp_path):
    good = golden()
    near = {**good, "top": [[i, x + LOGIT_ABS / 2] for i, x in good["top"]]}
    far = {**good, "top": [good["top"][0], [good["top"][1][0], good["top"][1][1] + 3]]}
    result = verify(tiny_bundle.write(tmp_path / "t.qedge", golden=[near, far]), "reference")
    assert [d.split(":")[0] for d in result.differences] == ["golden prompt 2, position 0"]
    assert f"token {far['top'][1][0]} has logit" in result.differences[0]


def test_a_near_tie_is_told_but_no_difference(tmp_path, monkeypatch):
    """The second best is taken for recorded where it is nearly the best."""
    good = golden()
    second = {**good, "tokens": [good["top"][1][0]], "top": good["top"]}
    path = tiny_bundle.write(tmp_path / "t.qedge", golden=[second])
    assert not verify(path, "reference").ok
    monkeypatch.setattr("quamba_edge.apps.verify.LOGIT_ABS", good["top"][0][1] - good["top"][1][1] + 0.01)
    result = verify(path, "reference")
    assert result.ok and result.near_ties == 1 and "1 near ties" in summary(result)


def test_ids_beyond_the_vocabulary_differ_and_do_not_crash(tmp_path):
    good = golden()
    odd = {**good, "tokens": [60], "top": [[60, 1.0]]}
    result = verify(tiny_bundle.write(tmp_path / "t.qedge", golden=[odd]), "reference")
    assert len(result.differences) == 2 and "logit none" in result.differences[0]


def test_a_bundle_without_golden_prompts_proves_nothing(tmp_path):
    result = verify(tiny_bundle.write(tmp_path / "t.qedge", golden=[]), Other())
    assert not result.ok and "records no golden prompt" in result.differences[0]


def test_damage_and_wrong_names_are_errors(tmp_path):
    path = tiny_bundle.write(tmp_path / "t.qedge")
    with pytest.raises(BadUsage):
        verify(path, "abacus")
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(HashMismatch, match=r"tokenizer\.json"):
        verify(path, "reference")


def test_the_bent_backend_is_a_backend():
    """The tests above mean something only if an unbent Other runs the reference's own code."""
    block = Other().alloc((2, 3), "f32")
    assert isinstance(block, Block) and array_of(block).shape == (2, 3)
