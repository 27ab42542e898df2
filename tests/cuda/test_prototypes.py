"""What is declared of libcuda (backends/libcuda.py) against every cuda.h that is here: names with their versions, arguments, structures."""

import ctypes
import re
import subprocess

import pytest

from quamba_edge.backends import cuda_pieces, libcuda
from tests.cuda import driver
from tests.gpu import own_pycuda
from tests.native.build import why_not

INCLUDES = own_pycuda.headers()
pytestmark = [
    pytest.mark.skipif(not INCLUDES, reason="no cuda.h: pip install nvidia-cuda-runtime-cu12==12.6.77"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.parametrize("include", INCLUDES, ids=str),
]
SCALARS = {
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "CUdevice": ctypes.c_int,
    "CUresult": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "unsigned long long": ctypes.c_ulonglong,
    "CUdeviceptr": ctypes.c_ulonglong,
    "CUmemGenericAllocationHandle": ctypes.c_ulonglong,
    "CUdevice_attribute": ctypes.c_int,
    "CUstreamCaptureMode": ctypes.c_int,
    "CUmemAllocationGranularity_flags": ctypes.c_int,
    "CUstream": ctypes.c_void_p,
    "CUgraph": ctypes.c_void_p,
    "CUgraphExec": ctypes.c_void_p,
    "char *": ctypes.c_char_p,
    "CUmemAllocationProp": cuda_pieces.Properties,
    "CUmemAccessDesc": cuda_pieces.Access,
}


def ctype(argument: str):
    """Of "const CUmemAllocationProp *prop": a pointer to Properties."""
    words = re.sub(r"\bconst\b|\w+$", "", argument.replace("*", " * ")).split()
    name = " ".join(words)
    if name in SCALARS:
        return SCALARS[name]
    assert name.endswith(" *"), f"{argument!r} is of a type that is not in this test's table"
    return ctypes.POINTER(SCALARS[name.removesuffix(" *")])


@pytest.mark.parametrize("name", libcuda.CALLS)
def test_arguments_are_those_of_the_header(name, include):
    declared = driver.declarations(include)
    assert name in declared, f"libcuda exports no {name}, by {include}/cuda.h"
    arguments = [a.strip() for a in declared[name][1].split(",") if a.strip() not in ("", "void")]
    assert [ctype(a) for a in arguments] == libcuda.CALLS[name], f"{name}({declared[name][1]})"


def test_structures_and_numbers_are_those_of_the_header(include):
    wanted = {
        "sizeof(CUmemAllocationProp)": ctypes.sizeof(cuda_pieces.Properties),
        "offsetof(CUmemAllocationProp, location)": cuda_pieces.Properties.location.offset,
        "offsetof(CUmemAllocationProp, allocFlags)": cuda_pieces.Properties.flags.offset,
        "sizeof(CUmemAccessDesc)": ctypes.sizeof(cuda_pieces.Access),
        "offsetof(CUmemAccessDesc, flags)": cuda_pieces.Access.flags.offset,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": libcuda.COMPUTE_MAJOR,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": libcuda.COMPUTE_MINOR,
        "CU_DEVICE_ATTRIBUTE_INTEGRATED": libcuda.INTEGRATED,
        "CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": cuda_pieces.VIRTUAL_MEMORY,
        "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": libcuda.THREAD_LOCAL,
        "CU_MEM_ALLOCATION_TYPE_PINNED": cuda_pieces.PINNED,
        "CU_MEM_LOCATION_TYPE_DEVICE": cuda_pieces.DEVICE,
        "CU_MEM_ACCESS_FLAGS_PROT_READWRITE": cuda_pieces.READ_WRITE,
        "CUDA_ERROR_OUT_OF_MEMORY": cuda_pieces.OUT_OF_MEMORY,
    }
    checks = "".join(f'static_assert({what} == {value}, "");\n' for what, value in wanted.items())
    text = f"#include <cuda.h>\n#include <stddef.h>\n{checks}"
    command = ["g++", "-fsyntax-only", "-x", "c++", f"-I{include}", "-"]
    ran = subprocess.run(command, input=text, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
