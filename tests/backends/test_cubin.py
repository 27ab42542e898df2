"""ELF headers of cubins as CUDA 12 and 13 write them, and everything that is none."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.backends import cubin
from quamba_edge.backends.cubin import Cubin


def header(osabi=0x33, abi=7, version=126, flags=0x00570557, machine=190, magic=b"\x7fELF\x02\x01\x01"):
    start = magic + bytes([osabi, abi]) + bytes(7)
    return (start + struct.pack("<HHIQQQI", 2, machine, version, 0, 0, 0, flags)).ljust(64, b"\0")


CUDA_13 = {"osabi": 0x41, "abi": 8, "version": 1, "flags": 0x06005704}


def test_what_the_toolkits_write():
    assert cubin.parse(header()) == Cubin(7, 87, (12, 6))
    assert cubin.parse(header(version=122)) == Cubin(7, 87, (12, 2))
    assert cubin.parse(header(**CUDA_13)) == Cubin(8, 87, (13, 0))


@pytest.mark.parametrize(
    ("made", "driver", "sm", "why"),
    [
        ({}, (12, 6), 87, None),
        ({}, (13, 2), 87, None),
        (CUDA_13, (13, 2), 87, None),
        (CUDA_13, (12, 6), 87, "built with CUDA 13, this driver is CUDA 12.6: build it with CUDA 12.6 or older"),
        ({"version": 128}, (12, 6), 87, "built with CUDA 12.8"),
        ({}, (11, 4), None, "this driver is CUDA 11.4"),
        ({}, (12, 6), 90, "built for sm_87, this GPU is sm_90"),
    ],
)
def test_what_drivers_take(made, driver, sm, why):
    found = cubin.refused(cubin.parse(header(**made)), driver, sm)
    assert found is None if why is None else why in found


@pytest.mark.parametrize(
    "bad", [b"", header()[:63], header(machine=183), header(magic=b"\x7fELF\x01\x01\x01"), header(osabi=0)]
)
def test_what_is_no_cubin(bad, tmp_path):
    with pytest.raises(ValueError, match="not a cubin|its ELF kind"):
        cubin.parse(bad)
    (tmp_path / "x.cubin").write_bytes(bad)
    with pytest.raises(ValueError):
        cubin.read(tmp_path / "x.cubin")


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda b: header()[:18] + b))
def test_garbage_is_a_value_error(data):
    try:
        assert cubin.parse(data).sm in range(256)
    except ValueError:
        pass
