"""A service on a tiny random model, and a client that asks it without a socket."""

import pytest

from quamba_edge.runtime.model import load
from quamba_edge.serve.engine import Service
from quamba_edge.serve.jobs import Limits
from tests.apps import tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("serve") / "tiny.qedge")


@pytest.fixture
def make(bundle):
    """make(**limits) -> a Service; all are closed at the end of the test."""
    made = []

    def service(**limits):
        made.append(Service(lambda: load(bundle, "reference"), Limits(**limits)))
        return made[-1]

    yield service
    for one in made:
        one.close()


@pytest.fixture
def service(make):
    return make()
