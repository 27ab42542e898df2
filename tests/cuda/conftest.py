"""The emulator with every kernel in it, one for each file of tests."""

import pytest

from tests.cuda.emulator import Emulator, build


@pytest.fixture(scope="module")
def emulator():
    running = Emulator(build())
    yield running
    running.close()
