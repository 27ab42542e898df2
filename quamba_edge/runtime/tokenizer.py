"""Text to token ids and back, and a decoder that gives out text while the ids are still coming.

One token is not one piece of text: byte-level vocabularies split a character such as an emoji over several tokens, so
decoding token by token prints rubbish.  `StreamDecoder` holds a character back until its last byte has come.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer as _Tokenizer

from quamba_edge.errors import BadBundle, BadUsage

REPLACEMENT = "\ufffd"
# A UTF-8 character has at most 4 bytes: this many tokens that all end inside a character can never complete one.
LONGEST_CHARACTER = 4
# How vocabularies spell the beginning and the end of a text, where the file itself does not say which token it is.
BOS = (
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|endoftext|>",
)  # GPT-style ones separate texts by the last
EOS = ("<|endoftext|>", "</s>", "<eos>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


class Tokenizer:
    """A vocabulary in the `tokenizers` JSON format, as it lies in bundles and checkpoints.

    Truncation and padding settings of the file are switched off: they belong to training, and would silently shorten a prompt.
    """

    def __init__(self, text: str, source: str = "tokenizer.json") -> None:
        """From JSON text; `source` names it in errors.  BadBundle when the text is not a tokenizer."""
        try:
            self._tokenizer = _Tokenizer.from_str(text)
        except Exception as e:  # the library raises bare Exception
            raise BadBundle(f"{source}: not a tokenizers JSON file ({e}); expected what tokenizer.json holds") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._byte_level = (json.loads(text).get("decoder") or {}).get("type") == "ByteLevel"
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._opening = self._put_before()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`.  Special tokens written in the text become their ids; none are added.

        BadUsage for text with half a surrogate pair in it, as a terminal in another encoding gives.
        """
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise BadUsage(
                f"the text has no Unicode character at position {e.start}: expected UTF-8; check the terminal's locale"
            ) from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def opened(self, text: str) -> list[int]:
        """Ids of a text that begins a prompt: with what this vocabulary begins every text with, unless it stands there already.

        Llama's and Mistral's begin with <s>, GPT-NeoX's with nothing.  Raises as `encode`.
        """
        ids = self.encode(text)
        return ids if ids[: len(self._opening)] == self._opening else [*self._opening, *ids]

    def _put_before(self) -> list[int]:
        """The ids that the file's post-processor puts before a text."""
        whole, plain = (self._tokenizer.encode("a", add_special_tokens=added).ids for added in (True, False))
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return list(whole[:at])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens spelled out; bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def special(self, token: str) -> int | None:
        """Id of a token spelled in full, such as "<|endoftext|>"; None when the vocabulary has no such token."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def eos_ids(self) -> list[int]:
        """Ids that end a text or a turn, by their usual spellings; [] when there are none."""
        return [i for token in EOS if (i := self.special(token)) is not None]

    def bos_id(self) -> int | None:
        """Id that begins a text, by its usual spellings."""
        return next((i for token in BOS if (i := self.special(token)) is not None), None)

    def token(self, i: int) -> str | None:
        """Spelling of id `i` in the vocabulary; None for an id that has none (a padded vocabulary row)."""
        return self._tokenizer.id_to_token(i)

    def piece(self, i: int) -> bytes:
        """Bytes that id `i` adds to a text, be it half a character; b"" for an id without a spelling."""
        token = self.token(i)
        if token is None:
            return b""
        return _token_bytes(token) if self._byte_level else self.decode([i]).encode()

    def stream(self) -> StreamDecoder:
        """A fresh decoder for ids that come one at a time."""
        return _ByteStream(self) if self._byte_level else _WindowStream(self)


class StreamDecoder:
    """`push(id)` gives the text that became certain, `flush()` the rest: concatenated, they are `decode` of all ids.

    The returned pieces never hold half a character.  For vocabularies that are not byte-level, equality holds for text
    that is valid UTF-8; what they print for broken bytes depends on bytes still to come.
    """

    def push(self, i: int) -> str:
        raise NotImplementedError

    def flush(self) -> str:
        raise NotImplementedError


class _ByteStream(StreamDecoder):
    """Byte-level vocabularies (GPT-2, GPT-NeoX): each token is known bytes, so an incremental UTF-8 decoder is exact."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, i: int) -> str:
        token = self._tokenizer.token(i)
        return "" if token is None else self._utf8.decode(_token_bytes(token))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _WindowStream(StreamDecoder):
    """Any other decoder: decode the new ids after the last piece given out, so that its context (a leading space) is right."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []
        self._waited = 0

    def push(self, i: int) -> str:
        self._pending.append(i)
        text = self._text()
        self._waited = self._waited + 1 if text.endswith(REPLACEMENT) else 0
        return "" if 0 < self._waited < LONGEST_CHARACTER else self._give_out(text)

    def flush(self) -> str:
        return self._give_out(self._text()) if self._pending else ""

    def _text(self) -> str:
        before = self._tokenizer.decode(self._context)
        both = self._tokenizer.decode(self._context + self._pending)
        # Broken bytes can change how the context reads; what was given out stands, so the new ids are read alone.
        return both[len(before) :] if both.startswith(before) else self._tokenizer.decode(self._pending)

    def _give_out(self, text: str) -> str:
        if text:  # a token that says nothing is no context: it would make the next one look like the first
            self._context, self._pending, self._waited = self._pending, [], 0
        return text


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """The 256 printable stand-ins for bytes of byte-level BPE: itself where printable, else the next unused from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


def _token_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; a token with a character outside the alphabet (an added one) stands for itself."""
    alphabet = _alphabet()
    try:
        return bytes(alphabet[c] for c in token)
    except KeyError:
        return token.encode()
