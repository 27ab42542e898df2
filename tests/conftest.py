"""What every test gets: its own working folder, one thread for its arithmetic, no network, and where the models are."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tests run side by side, one process a core.  Read by numpy's BLAS and by torch when they are first imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

REPO = Path(__file__).resolve().parent.parent
MODELS = REPO / "demos" / "models"
SHARED = REPO.parent / "shared"  # third-party texts and models, beside the checkout where there are any

# No deadline: the machines are shared, and a slow moment is not a failure.  In CI a failure must be the commit's doing.
settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test works in its own empty folder: what it leaves behind it leaves there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the source tree."""
    return REPO


@pytest.fixture(scope="session", params=["mamba", "mamba2"])
def storyteller(request) -> Path:
    """Checkpoint folder of each embedded model in turn."""
    return MODELS / {"mamba": "storyteller-mamba1-5m", "mamba2": "storyteller-mamba2-5m"}[request.param]


@pytest.fixture(scope="session")
def storyteller_mamba1() -> Path:
    return MODELS / "storyteller-mamba1-5m"


@pytest.fixture(scope="session")
def storyteller_mamba2() -> Path:
    return MODELS / "storyteller-mamba2-5m"


@pytest.fixture(scope="session")
def shared():
    """`shared("data/stories/chat-valid.txt")` is that path beside the checkout; the test is skipped where it is absent."""

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"needs third-party data that the repository does not carry: ../shared/{relative}")
        return path

    return find
