"""The sampling kernels choose what runtime/sampling.py chooses, with its random number: on the CPU (emulator.py)."""

import numpy as np
import pytest

from quamba_edge import backends
from quamba_edge.backends import cuda_load, launch
from quamba_edge.backends.cuda_plan import CudaBackend
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import CheckFailed, Missing
from quamba_edge.runtime.generate import generate
from quamba_edge.runtime.sampling import Sampler, Sampling
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.runtime.tokenizer import Tokenizer
from tests.cuda.emulator import Pointer
from tests.cuda.fake_device import FakeDevice
from tests.golden.make import HERE
from tests.native.build import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def choose(emulator, logits, request, backwards=False) -> int:
    """What the kernels leave; a 77 beyond the vocabulary must not matter, and every array but the bins starts as noise."""
    V = len(logits)
    arrays = {"logits": np.append(logits, np.float32(77)).astype(np.float32), "how": request}
    for name, (dtype, count) in launch.SAMPLE_ARRAYS.items():
        arrays[name] = np.full(count(V) * np.dtype(dtype).itemsize, 0x7F, np.uint8)
    raw = {name: a.view(np.uint8) for name, a in arrays.items()}
    for what, names in launch.sample(V):
        emulator.run(what, [*(Pointer(raw[n]) for n in names), V], backwards)
    return int(raw["token"].view(np.int32)[0])


NONE = Sampling()
SETTINGS = [
    NONE,
    Sampling(temperature=0, repetition_penalty=1.7, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={3: 4.0}),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, min_p=0.02),
    Sampling(temperature=3.0, logit_bias={9: 1.5, 17: float("-inf")}, repetition_penalty=0.8),
    Sampling(temperature=0.8, top_k=40),
    Sampling(temperature=1.3, top_k=1),
    Sampling(temperature=1.1, top_k=200, top_p=0.9, min_p=0.001, frequency_penalty=0.4),
    Sampling(temperature=0.9, top_p=0.95),
    Sampling(temperature=0.6, top_p=0.5, min_p=0.1, presence_penalty=-0.7),
    Sampling(temperature=1e-6, top_p=0.9),
]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_the_token_is_the_rules(number, emulator):
    """Ties included; pieces with a tail, less than one, and several; twice with threads in the other order."""
    s = SETTINGS[number]
    rng = np.random.default_rng(number)
    for V, scale in ((5003, 2.0), (2048, 0.5), (70, 3.0)):
        logits = rng.normal(0, scale, V).astype(np.float32)
        logits[rng.integers(0, V, V // 3)] = logits.max() - rng.integers(0, 3, V // 3).astype(np.float32) / 4
        logits[5:8] = -np.inf
        history = rng.integers(0, V, 50).tolist()
        device, host = Sampler(Sampling(**{**vars(s), "seed": 4})), Sampler(Sampling(**{**vars(s), "seed": 4}))
        for turn in range(3):
            request = device.request(history, 20)
            found, expected = choose(emulator, logits, request, backwards=turn % 2 > 0), host.pick(logits, history, 20)
            if found != launch.HOST:
                device.answered()
            else:
                found = device.pick(logits, history, 20)
            assert found == expected, (V, turn, s)
            history.append(found)


def test_chances_are_those_of_the_rule(emulator):
    """All places of the random number's line, in order: each token has its share of it, to the last bit that counts."""
    logits = np.array([1.0, 3.0, 2.5, -1.0, 3.0, 0.25], np.float32)
    for s in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=4, top_p=0.9)):
        for place in np.linspace(0, 1 - 2**-53, 23):
            device, host = Sampler(s), Sampler(s)
            device._drawn = host._drawn = float(place)
            assert choose(emulator, logits, device.request([], 0)) == host.pick(logits)


@pytest.mark.parametrize(
    "logits, s, expected",
    [
        ([1.0, np.nan, 2.0], NONE, -1),
        ([1.0, np.inf, 2.0], Sampling(temperature=1), -1),
        ([-np.inf] * 3, NONE, -1),
        ([0.0] * 3000, Sampling(temperature=1, top_p=0.5), launch.HOST),  # more candidates than can be sorted
        ([0.0] * 3000, Sampling(temperature=1, top_k=10), launch.HOST),
        ([0.0] * 900, Sampling(temperature=1, top_k=1024), None),  # top_k beyond the vocabulary: all
    ],
)
def test_what_is_left_to_the_host(logits, s, expected, emulator):
    logits, device = np.array(logits, np.float32), Sampler(Sampling(**{**vars(s), "seed": 1}))
    found = choose(emulator, logits, device.request([], 0))
    assert found == expected if expected is not None else found == device.pick(logits)


def test_requests_that_no_backend_should_get():
    assert Sampler(Sampling(temperature=1, top_k=launch.LOOK + 1)).request([], 0) is None
    assert Sampler(Sampling(temperature=1e-40)).request([], 0) is None
    assert Sampler(Sampling(repetition_penalty=2)).request(list(range(launch.EDITS + 1)), 0) is None
    with pytest.raises(Missing, match="--backend cpu"):
        launch.sample(launch.LOOK * launch.PIECE + 1)


def test_a_backend_that_chooses_says_what_the_host_would(emulator, monkeypatch):
    """Four bytes come back for each token after the first; logits only when somebody asks; other sessions do not disturb."""
    sampling = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=3)
    monkeypatch.setattr(cuda_load, "SEGMENT", 1)
    backend = CudaBackend(lambda: FakeDevice(emulator))
    with Bundle.open(HERE / "mamba2.qedge") as bundle:
        tokenizer = Tokenizer(bundle.tokenizer_json())
        engine = Engine(bundle, backend)
        told, other = Session(engine), Session(engine)
        logits, texts = {}, {}
        for session, where in ((told, "device"), (other, "host")):
            if where == "host":  # the same kernels, another way to choose
                monkeypatch.setattr(backend, "chooser", lambda *given: None)
                engine._plans.clear()
            before = len(backend.device.calls)
            texts[where] = [s.token for s in generate(session, [7], tokenizer, sampling=sampling, max_tokens=3)]
            calls = backend.device.calls[before:]
            size = 4 * engine.manifest.sites["head"]["N"]
            # The device's first token is the host's; the other session fetches what the first has not asked for, before it is gone.
            assert calls.count(("download", size)) == (1 if where == "device" else 1 + 3)
            assert calls.count(("download", 4)) == (2 if where == "device" else 0)
            assert calls.count(("post", 4)) == (2 if where == "device" else 0), "the token, beside the request"
            if where == "host":
                logits[where] = session.logits
        assert texts["device"] == texts["host"]
        assert (told.logits == logits["host"]).all(), "the other session took their place before they were read"


def test_broken_logits_are_the_hosts_to_say(emulator, monkeypatch):
    monkeypatch.setattr(cuda_load, "SEGMENT", 1)
    backend = CudaBackend(lambda: FakeDevice(emulator))
    with Bundle.open(HERE / "mamba2.qedge") as bundle:
        session = Session(Engine(bundle, backend))
        first = session.prefill([7])
        sampler = Sampler(NONE)
        assert session.choose(int(first.argmax()), lambda: sampler.request([], 0)) is not None
        plan = session.engine.plan(1, 1, "last")
        broken = np.full(plan.buffers["logits"].shape, np.nan, np.float32)
        run = backend._run

        def poisoned(*recorded):
            for one in recorded:
                if one is plan.chooser:
                    backend.device.upload(plan.buffers["logits"].memory.address, broken)
                run(one)

        monkeypatch.setattr(backend, "_run", poisoned)
        assert session.choose(3, lambda: sampler.request([], 0)) is None
        with pytest.raises(CheckFailed, match="NaN"):
            sampler.pick(session.logits)


def test_the_host_backends_leave_it(tmp_path):
    with Bundle.open(HERE / "mamba2.qedge") as bundle:
        session = Session(Engine(bundle, backends.open_backend("reference")))
        session.prefill([7])
        assert session.choose(9, lambda: 1 / 0) is None and session.logits is not None
