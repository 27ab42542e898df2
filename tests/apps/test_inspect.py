"""`inspect`: its sizes add up to the file, and it says where a bundle came from."""

import json

import pytest

from quamba_edge.apps.inspect import inspect, text
from quamba_edge.errors import NotABundle
from tests.bundle import build


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("tied", [True, False])
def test_sizes_add_up(family, tied):
    path, logical = build.write(family=family, tied=tied)
    found = inspect(path)
    assert found.bytes == path.stat().st_size == found.header_bytes + sum(p.bytes for p in found.parts)
    assert sum(p.tensors for p in found.parts) == len(logical)
    weights = ("weight", "codes", "bias", "ssm.A", "ssm.D")
    assert found.parameters == sum(a.size for n, (a, _, _) in logical.items() if n.endswith(weights))
    rest = sum(p.bytes for p in found.parts if p.name != "tokenizer")
    assert found.bits_per_weight == 8 * rest / found.parameters


def test_parts_carry_their_schemes():
    path, logical = build.write(group=16)
    parts = {p.name: p for p in inspect(path).parts}
    assert parts["layers.*.in_proj"].scheme == "w4a8 g16 rtn" and parts["embedding"].scheme == "w8a16 rtn"
    assert parts["layers.*.in_proj"].parameters == 2 * logical["layers.0.in_proj.codes"][0].size
    assert (
        parts["head"].scheme == "w8a8 rtn" and parts["head"].parameters == 0 and parts["head"].bits_per_weight is None
    )


def test_report_and_json():
    path, _ = build.write()
    found = inspect(path)
    report, raw = text(found), json.loads(json.dumps(found.to_json()))
    for words in (
        "mamba2, 2 layers",
        found.digest,
        "source 12.500, bundle 12.750 (100 tokens)",
        "license apache-2.0",
        "1 golden",
    ):
        assert words in report
    assert raw["digest"] == found.digest and raw["parts"][0]["name"] == "embedding"
    assert raw["parts"][0]["bits_per_weight"] == pytest.approx(8 * raw["parts"][0]["bytes"] / 960)


def test_other_files_are_refused():
    with pytest.raises(NotABundle):
        inspect("absent.qedge")
