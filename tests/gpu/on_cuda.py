"""A pytest plugin: engines that tests open on the reference backend are opened on the cuda backend.  `pytest -p tests.gpu.on_cuda tests/runtime/...`

So what sessions promise (any split of a prompt, saving, rewinding, several at once) is tested where it will be used.
"""

import pytest
from hypothesis import settings

from quamba_edge.runtime import engine

EXAMPLES = 5  # of each property: an emulated GPU is slow

_open = engine.open_backend


def _opened(name="auto", threads=None):
    return _open("cuda" if name in ("auto", "reference") else name, threads if name == "cpu" else None)


def pytest_configure(config):
    engine.open_backend = _opened
    settings.register_profile("on-cuda", settings.get_profile("default"), max_examples=EXAMPLES)


@pytest.hookimpl(trylast=True)
def pytest_collection(session):
    settings.load_profile("on-cuda")  # after tests/conftest.py has loaded its own
