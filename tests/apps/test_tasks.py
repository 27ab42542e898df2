"""`eval --tasks` from files to JSON, for bundles and checkpoints; the torch reader against the model read at once."""

import json

import numpy as np
import pytest

from quamba_edge.apps import tasks as app
from quamba_edge.cli import main
from quamba_edge.errors import BadCheckpoint, BadText, BadUsage
from quamba_edge.runtime.session import Engine
from quamba_edge.runtime.tokenizer import Tokenizer
from quamba_edge.tasks.scoring import score
from quamba_edge.tasks.tokens import Request
from tests.apps import tiny_bundle

ARC = [
    {"query": f"Question: Is {a} red?", "choices": ["Yes", "No", "Now and then"], "gold": i % 3}
    for i, a in enumerate("abcd")
]
ANSWERS = ("choice0", "choice1", "choice2", "choice3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("tasks") / "tiny.qedge")


@pytest.fixture
def data(tmp_path):
    """Every task's files, with letters that the tiny vocabulary has."""
    folder = tmp_path / "data"
    lines = {
        "lambada_openai": [{"text": "It was a fine day in the wood"}, {"text": "A fox ran by"}],
        "hellaswag": [{"ctx": "A fox. it", "endings": ["ran.", "sat on it."], "label": 1}],
        "piqa": [{"query": "Question: Dry it\n", "choices": ["in the sun", "in a lake"], "gold": 0}],
        "arc_easy": ARC,
        "arc_challenge": ARC[:1],
        "winogrande": [
            {"context_options": ["Ann saw Bea so Ann", "Ann saw Bea so Bea"], "continuation": "ran.", "gold": 0}
        ],
        "blimp/agreement": [{"sentence_good": "It is.", "sentence_bad": "It are."}] * 2,
        "blimp/islands": [{"sentence_good": "Who ran", "sentence_bad": "Ran who"}],
    }
    for name, rows in lines.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for kind, rows in (("test", ["Where,here,there,up,down,2"]), ("dev", [f"Who{c},I,he,we,she,1" for c in "abcde"])):
        path = folder / "mmlu" / kind / f"old_songs_{kind}.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join([",".join(["question", *ANSWERS, "answer"]), *rows]))
    return folder


def test_every_task_of_a_bundle_through_the_command_line(bundle, data, capsys):
    assert main(["eval", str(bundle), "--tasks", "all", "--data", str(data), "--backend", "reference", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {t: v["n"] for t, v in found.items()} == {
        "lambada": 2, "hellaswag": 1, "piqa": 1, "arc_easy": 4, "arc_challenge": 1, "winogrande": 1, "blimp": 3, "mmlu": 1,
    }  # fmt: skip
    assert all(0 <= v["acc"] <= 1 and v["backend"] == "reference" for v in found.values())
    assert {t for t, v in found.items() if "acc_norm" in v} == {"hellaswag", "piqa", "arc_easy", "arc_challenge"}
    assert found["lambada"]["perplexity"] > 1 and found["mmlu"]["fewshot"] == 5 and found["blimp"]["fewshot"] == 0
    assert found["blimp"]["subtasks"]["agreement"]["n"] == 2 and found["mmlu"]["acc_stderr"] is None
    assert main(["eval", str(bundle), "--tasks", "blimp,piqa", "--data", str(data), "--limit", "1", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("blimp  n      2  acc ") and "acc_norm" in lines[1]


def test_answers_are_those_of_the_likeliest_text(bundle, data):
    found = app.evaluate(str(bundle), "arc_easy", data, backend="reference", state_dtype="f32")["arc_easy"]
    engine = Engine(app.Bundle.open(bundle), "reference", "f32")
    words, right, normed = Tokenizer(tiny_bundle.TOKENIZER), 0, 0
    for row in ARC:
        context = words.encode(row["query"] + "\nAnswer:")
        each = [
            engine.score(np.array([context + words.encode(" " + c)]))[0, len(context) - 1 :].sum()
            for c in row["choices"]
        ]
        right += int(np.argmax(each)) == row["gold"]
        normed += int(np.argmax(np.array(each) / [len(c) for c in row["choices"]])) == row["gold"]
    assert (found["acc"], found["acc_norm"]) == (right / 4, normed / 4)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_checkpoint_is_read_in_pieces_as_at_once(family, data, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.tiny import write_checkpoint

    folder = write_checkpoint(tmp_path / "checkpoint", family)
    from quamba_edge.checkpoint import open_checkpoint

    one = app.CheckpointReader(open_checkpoint(str(folder)))
    assert one.name == "torch reference" and one.vocab_size == 257
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 257, (3, 150))
    with torch.no_grad():
        exact = one._lm(torch.from_numpy(ids))[0][..., :257].log_softmax(-1).numpy()
    states, logits = one.read(ids[:, :140], None)
    assert one.state_bytes == sum(t.nbytes for layer in states[0] for t in (layer.conv, layer.ssm))
    assert np.allclose(
        logits - logits.max(-1, keepdims=True), exact[:, 139] - exact[:, 139].max(-1, keepdims=True), atol=1e-4
    )
    chances, _ = one.follow(ids[:2, 140:], states[1:])  # other sequences' states, and fewer
    expected, _ = one.follow(ids[1:3, 140:], states[1:])
    assert not np.allclose(chances, expected)
    wanted = np.take_along_axis(exact[1:3, 140:149], ids[1:3, 141:, None], -1)[..., 0]
    assert np.allclose(expected, wanted, atol=1e-4)
    asked = [Request((1,), tuple(rng.integers(0, 257, 5).tolist())) for _ in range(50)]  # read as 32, 16, 2
    assert one.batches[0] == 32
    together = [s.logp for s in score(one, asked)]
    one.sizes = (1,)
    assert np.allclose(together, [s.logp for s in score(one, asked)], atol=1e-4)
    found = app.evaluate(str(folder), "blimp,arc_easy", data)
    assert found["blimp"]["backend"] == "torch reference" and found["arc_easy"]["n"] == 4


def test_bad_requests(bundle, data, capsys, tmp_path):
    for words, message in (
        (["--tasks", "piqa"], "--tasks needs --data DIR"),
        ([], "either --ppl TEXT or --tasks"),
        (["--tasks", "piqa", "--ppl", "t.txt"], "either --ppl TEXT or --tasks"),
        (["--tasks", "piqa", "--data", "d", "--window", "9"], "--tasks takes no --window"),
        (["--ppl", "t.txt", "--limit", "9", "--seed", "0"], "--ppl takes no --limit, --seed"),
        (["--tasks", "pika", "--data", str(data)], "'pika' is no task"),
        (["--tasks", "piqa", "--data", str(data), "--fewshot", "2"], "--fewshot 2 is for mmlu"),
        (["--tasks", "mmlu", "--data", str(data), "--fewshot", "6"], "has 5 examples for old_songs"),
        (["--tasks", "piqa", "--data", str(data), "--seed", "2"], "--seed chooses the questions of --limit"),
    ):
        assert main(["eval", str(bundle), *words]) == 2
        assert message in capsys.readouterr().err
    (data / "piqa.jsonl").unlink()
    with pytest.raises(BadText, match=r"piqa\.jsonl, which is not there"):
        app.evaluate(str(bundle), "arc_easy,piqa", data)
    with pytest.raises(BadUsage, match="a bundle has its own"):
        app.evaluate(str(bundle), "arc_easy", data, tokenizer=tmp_path / "tokenizer.json")


def test_what_a_checkpoint_needs_and_refuses(data, tmp_path):
    pytest.importorskip("torch")
    from tests.tiny import write_checkpoint

    folder = write_checkpoint(tmp_path / "checkpoint", "mamba2")
    with pytest.raises(BadUsage, match="are for bundles"):
        app.evaluate(str(folder), "arc_easy", data, threads=2)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadCheckpoint, match="--tokenizer FILE"):
        app.evaluate(str(folder), "arc_easy", data)


def test_the_real_files_are_as_expected(shared, storyteller_mamba2):
    """The first questions of the real files."""
    pytest.importorskip("torch")
    data = shared("data/eval")
    found = app.evaluate(str(storyteller_mamba2), "arc_easy,blimp", data, limit=1)
    assert found["arc_easy"]["n"] == 1 and found["blimp"]["n"] == len(found["blimp"]["subtasks"]) == 34
