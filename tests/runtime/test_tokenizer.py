"""The text that streams out, concatenated, is the text of all ids at once, and no piece of it is half a character."""

import json
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HF
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from quamba_edge.errors import BadBundle, BadUsage
from quamba_edge.runtime.tokenizer import Tokenizer

TEXT = "Once upon a time 小さな家 lived a 👩‍👩‍👧 family. Ça va? Ünïcödé, naïve café — 你好，世界！ 🦊🦊 \n\n\tthe end."
SPECIAL = "<|endoftext|>"


@lru_cache
def byte_level() -> Tokenizer:
    """A byte-level BPE whose merges also join halves of different characters, with added tokens that are no byte alphabet."""
    hf = HF(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    hf.train_from_iterator([TEXT] * 4, trainer)
    hf.add_tokens(["    ", "[ё]", "é!"])
    hf.enable_truncation(3)
    return Tokenizer(hf.to_str())


@lru_cache
def byte_fallback() -> Tokenizer:
    """A SentencePiece-like vocabulary: characters, and the 256 bytes for what it has no character for."""
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁time", "t", "i", "m", "e", "a", "é"]
    hf = HF(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    hf.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    hf.decoder = decoders.Sequence(steps)
    return Tokenizer(hf.to_str())


@pytest.mark.parametrize("single, opening", [("<s> $A", [1]), ("<s> $A </s>", [1]), ("$A </s>", []), ("$A", [])])
def test_a_text_opens_as_its_vocabulary_opens_texts(single, opening):
    hf = HF(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    hf.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf.add_special_tokens(["<s>", "</s>"])
    hf.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    words = Tokenizer(hf.to_str())
    assert words.opened("b a") == [*opening, 4, 3] and words.encode("b a") == [4, 3]
    assert words.opened("<s> b") == [1, 4]  # not twice
    assert words.opened("") == opening


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids] + [stream.flush()]
    for piece in pieces:
        piece.encode()  # no lone surrogate, no half character
    return "".join(pieces)


@given(st.lists(st.integers(0, 344), max_size=60))
@example([])
def test_any_ids_stream_as_they_decode(ids):
    assert streamed(byte_level(), ids) == byte_level().decode(ids)


@given(st.text(max_size=40) | st.text("👩‍🦊你é a\ufffd", max_size=20))
@example("\ufffd")
@example(TEXT)
def test_any_text_survives(text):
    tokenizer = byte_level()
    ids = tokenizer.encode(text)
    if SPECIAL not in text:
        assert tokenizer.decode(ids) == text
    assert streamed(tokenizer, ids) == text


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=8))
@example([b"\xf0\x9f\x98", b"A\xff\xc3"])
def test_broken_bytes_become_replacement_characters_without_waiting_for_the_end(chunks):
    """Against Python's own decoder; at most the 3 bytes that a character can lack are held back."""
    tokenizer = byte_level()
    of_byte = {spelled(token): i for i in range(1, 257) if (token := tokenizer.token(i))}
    raw = b"".join(chunks)
    stream, out = tokenizer.stream(), ""
    for n, byte in enumerate(raw, 1):
        out += stream.push(of_byte[byte])
        assert out.startswith(raw[: max(n - 3, 0)].decode(errors="replace").rstrip("\ufffd"))
        assert raw.decode(errors="replace").startswith(out)
    assert out + stream.flush() == raw.decode(errors="replace")


def spelled(token: str) -> int:
    """The byte that a one-character token stands for."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return ord(token) if ord(token) in plain else rest[ord(token) - 256]


@given(st.text("timeaé 你🦊ñ", max_size=30))
@example("time 🦊🦊")
def test_byte_fallback_vocabularies_stream_too(text):
    tokenizer = byte_fallback()
    ids = tokenizer.encode(text)
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_byte_fallback_never_waits_longer_than_a_character():
    tokenizer = byte_fallback()
    stream = tokenizer.stream()
    out = [stream.push(1 + 0xE4) for _ in range(9)]
    assert "".join(out).count("\ufffd") >= 8
    assert stream.push(tokenizer.special("t")).endswith("t")


def test_special_tokens_in_text_are_parsed_and_spelled_out():
    tokenizer = byte_level()
    ids = tokenizer.encode(f"a{SPECIAL}b")
    assert tokenizer.special(SPECIAL) == 0 and ids.count(0) == 1
    assert tokenizer.decode(ids) == f"a{SPECIAL}b"
    assert tokenizer.special("<|nothing|>") is None


def test_ends_and_beginnings_are_found_by_their_spelling():
    assert byte_level().eos_ids() == [0] and byte_level().bos_id() == 0
    assert byte_fallback().eos_ids() == [] and byte_fallback().bos_id() is None
    both = HF(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 3}, unk_token="<unk>"))
    assert Tokenizer(both.to_str()).eos_ids() == [2, 3] and Tokenizer(both.to_str()).bos_id() == 1


def test_text_that_is_no_text_is_refused():
    with pytest.raises(BadUsage, match="no Unicode character at position 2"):
        byte_level().encode("ab\udc80")


def test_truncation_of_the_file_is_off():
    assert len(byte_level().encode("abcdefgh")) > 3


def test_vocab_size_counts_to_the_last_id():
    assert byte_level().vocab_size == 343
    assert byte_level().token(342) == "é!" and byte_level().token(343) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"model": {"type": "Nothing"}})])
def test_what_is_no_tokenizer_is_refused_by_name(text):
    with pytest.raises(BadBundle, match=r"^here\.json: not a tokenizers JSON file"):
        Tokenizer(text, "here.json")


def test_the_neox_vocabulary_streams_as_it_decodes():
    path = Path(__file__).parents[3] / "shared/tokenizers/gpt-neox-20b.json"
    if not path.exists():
        pytest.skip(f"{path} is not here: third-party data")
    tokenizer = Tokenizer(path.read_text())
    ids = tokenizer.encode(TEXT + "        x") + list(range(0, 50277, 97))
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    assert tokenizer.vocab_size == 50277


@given(st.lists(st.integers(0, 344), max_size=30))
def test_pieces_are_the_bytes_of_the_text(ids):
    tokenizer = byte_level()
    joined = b"".join(tokenizer.piece(i) for i in ids)
    assert joined.decode(errors="replace") == tokenizer.decode(ids)
