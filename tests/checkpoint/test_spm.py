"""SentencePiece models become tokenizers of the same ids: by hand, and against the sentencepiece library on models it trained."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quamba_edge.checkpoint import open_checkpoint, spm
from quamba_edge.runtime.tokenizer import Tokenizer as BoardTokenizer
from tests.checkpoint import sources
from tests.checkpoint.refusal import refused
from tests.conftest import REPO
from tests.tiny import tokenizer_json, write_checkpoint

OPTIONS = {  # as large models are trained (bytes for what is unknown, text left as it is), and the library's defaults
    "prefix": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True},
    "no prefix": {
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True},
        **{"add_dummy_prefix": False, "allow_whitespace_only_pieces": True, "split_digits": True},
    },
    "defaults": {},
}


@pytest.fixture(scope="module", params=[(a, o) for a in ("bpe", "unigram") for o in OPTIONS], ids=" ".join)
def pair(request):
    """(sentencepiece's own processor, our conversion) of a model trained on this repository's documents."""
    library = pytest.importorskip("sentencepiece", reason="the oracle is not installed: pip install sentencepiece")
    algorithm, options = request.param
    lines = (REPO / "docs/architecture.md").read_text().splitlines() + (REPO / "README.md").read_text().splitlines()
    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type=algorithm,
        vocab_size=700,
        hard_vocab_limit=False,
        control_symbols=["[INST]"],
        minloglevel=2,
        num_threads=1,
        **OPTIONS[options],
    )
    converted = spm.convert(spm.parse(out.getvalue()))
    return library.SentencePieceProcessor(model_proto=out.getvalue()), Tokenizer.from_str(converted), lines


def same(pair, text):
    """The same ids; or, of Unigram, where two ways of cutting a text have the same score, the other."""
    own, found = pair[0].encode(text), pair[1].encode(text, add_special_tokens=False).ids
    if "Unigram" in str(pair[1].model):
        scores = [sum(pair[0].get_score(i) for i in ids) for ids in (own, found)]
        assert found == own or scores[0] == pytest.approx(scores[1], rel=1e-5), text
    else:
        assert found == own, text
    if pair[0].unk_id() not in own:
        assert pair[1].decode(found, skip_special_tokens=False).strip() == pair[0].decode(own).strip()


def test_whole_documents(pair):
    for line in pair[2]:
        same(pair, line)


@given(text=st.text(alphabet="ab etnis\u00e9\n\t\u65e5\U0001f389_.01<", max_size=40))
def test_any_text(pair, text):
    same(pair, text)


def test_control_tokens_are_found_in_text(pair):
    ids = pair[1].encode("[INST] the", add_special_tokens=False).ids
    assert ids[0] == pair[0].piece_to_id("[INST]") and ids[1:] == pair[0].encode(" the")


@pytest.mark.parametrize("algorithm", [1, 2], ids=["unigram", "bpe"])
def test_by_hand(tmp_path, algorithm):
    path = tmp_path / "tokenizer.model.v3"
    path.write_bytes(sources.sentencepiece_model(algorithm))
    words = BoardTokenizer(spm.tokenizer_json(path))
    assert words.vocab_size == 264 and (words.bos_id(), words.eos_ids()) == (1, [2])
    assert words.encode("hi hi") == [259, 259] and words.decode([259, 259]) == "hi hi"
    assert words.encode("é") == [261, 3 + 0xC3, 3 + 0xA9] and words.decode(words.encode("hi é")) == "hi é"
    assert words.opened("hi") == [1, 259] == words.opened("<s>hi") and words.opened("") == [1]  # Mistral's name
    path.rename(tmp_path / "a.model")
    assert BoardTokenizer(spm.tokenizer_json(tmp_path / "a.model")).opened("hi") == [259]
    stream = words.stream()
    assert [stream.push(i) for i in words.encode("hi é")] == ["hi", " ", "", "é"] and stream.flush() == ""


def test_the_tokenizer_of_a_folder(tmp_path):
    folder = write_checkpoint(tmp_path / "c", "mamba")
    (folder / "a.model").write_bytes(sources.sentencepiece_model())
    assert open_checkpoint(folder).tokenizer_json == tokenizer_json()  # tokenizer.json goes before
    assert open_checkpoint(folder, tokenizer=folder / "a.model").config.true_vocab_size == 257
    (folder / "tokenizer.json").unlink()
    assert '"BPE"' in open_checkpoint(folder).tokenizer_json
    (folder / "b.model").write_bytes(b"")
    refused(folder, "a.model, b.model", "--tokenizer")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "no pieces"),
        (b"{}", "not a SentencePiece model"),
        (sources.sentencepiece_model()[:-3], "not a SentencePiece model"),
        (sources.sentencepiece_model(3), "words or characters"),
        (b"\x0a\x03\x0a\x01\xff", "not a SentencePiece model"),
        (b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", "not a SentencePiece model"),
    ],
    ids=range(6),
)
def test_what_is_no_sentencepiece_model(tmp_path, content, says):
    folder = write_checkpoint(tmp_path / "c", "mamba")
    (folder / "x.model").write_bytes(content)
    refused(folder, folder / "x.model", says, tokenizer=folder / "x.model")
