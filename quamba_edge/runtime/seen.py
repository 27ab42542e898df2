"""The tokens that a state has read: how many, the ones still known, and a digest by which a longer text proves that it begins so.

The digest is a chain over blocks of 128 tokens, closed by what is left over:

    link 0 = ""      link i+1 = sha256(link i, tokens of block i)      digest of n tokens = sha256("end", link n // 128, the rest)

so it goes on from a link and the last tokens alone, which is what a saved session of constant size keeps, and one walk along a
prompt gives the digests of all its beginnings.  Tokens enter it as 4 bytes, little-endian.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

BLOCK = 128  # tokens in a link


def _raw(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, "<i4").tobytes()


def link_after(link: bytes, tokens: Sequence[int]) -> bytes:
    """The link after the whole blocks that `tokens` begin with, which follow `link`."""
    raw = _raw(tokens)
    for a in range(0, len(raw) - len(raw) % (4 * BLOCK), 4 * BLOCK):
        link = hashlib.sha256(link + raw[a : a + 4 * BLOCK]).digest()
    return link


def closed(link: bytes, rest: Sequence[int]) -> str:
    """The digest, from the last link and the fewer than 128 tokens after it."""
    return hashlib.sha256(b"end" + link + _raw(rest)).hexdigest()


def digest(tokens: Sequence[int]) -> str:
    """The digest of a text given whole."""
    return closed(link_after(b"", tokens), tokens[len(tokens) // BLOCK * BLOCK :])


def digests(tokens: Sequence[int], counts: Iterable[int]) -> dict[int, str]:
    """The digests of its first `counts` tokens, in one walk; counts beyond its length are left out."""
    found, link, at = {}, b"", 0
    for count in sorted(c for c in set(counts) if c <= len(tokens)):
        whole = count // BLOCK * BLOCK
        link, at = link_after(link, tokens[at:whole]), whole
        found[count] = closed(link, tokens[whole:count])
    return found


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest beginning that two texts have in common."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n], np.int64) != np.asarray(b[:n], np.int64))
    return int(differ[0]) if differ.size else n


@dataclass(frozen=True)
class Reuse:
    """How many tokens of a prompt a session's state now holds, and, where it could have been more, why it is not."""

    tokens: int
    note: str | None = None


@dataclass
class Seen:
    """`tokens` are the known ones, the last of `count`; of those before them only what `anchor` says is known.

    anchor: (n, link after n // 128 blocks, digest of the first n); tokens are known from block n // 128 on.
    """

    tokens: list[int] = field(default_factory=list)
    first: int = 0  # place of tokens[0] in the text
    anchor: tuple[int, bytes, str] = (0, b"", digest([]))

    @property
    def count(self) -> int:
        """Tokens of the whole text."""
        return self.first + len(self.tokens)

    @property
    def whole(self) -> bool:
        """Whether every token is known."""
        return self.first == 0

    def push(self, tokens: Iterable[int]) -> None:
        """More was read."""
        self.tokens.extend(tokens)

    def copy(self) -> Seen:
        return Seen(list(self.tokens), self.first, self.anchor)

    def known(self, a: int, b: int) -> list[int]:
        """Tokens [a, b) of the text; a is at or after `first`."""
        assert self.first <= a <= b <= self.count, f"tokens {a}..{b} of {self.first}..{self.count}"
        return self.tokens[a - self.first : b - self.first]

    def link(self) -> bytes:
        """The link after all whole blocks."""
        at = self.anchor[0] // BLOCK * BLOCK
        return link_after(self.anchor[1], self.known(at, self.count))

    def digest(self) -> str:
        """The digest of the whole text."""
        return closed(self.link(), self.known(self.count // BLOCK * BLOCK, self.count))

    def shared(self, ids: Sequence[int]) -> int:
        """How far `ids` are this text: exact where tokens are known, else all of the unknown part or nothing of it."""
        if self.whole:
            return shared(self.tokens, ids)
        n, _, expected = self.anchor
        if len(ids) < n or digest(ids[:n]) != expected:
            return 0
        return n + shared(self.known(n, self.count), ids[n:])

    def learn(self, ids: Sequence[int]) -> None:
        """The whole text, from somebody who proved to know it (`shared` is all of it)."""
        assert len(ids) == self.count
        self.tokens, self.first = list(ids), 0

    def can_cut(self, count: int) -> bool:
        """Whether a text cut back to `count` can still prove its beginning."""
        return self.whole or count >= self.anchor[0]

    def cut(self, count: int) -> None:
        """Forget what came after the first `count`."""
        assert self.can_cut(count), f"cut to {count}, before {self.anchor[0]}"
        del self.tokens[count - self.first :]
        if count < self.anchor[0]:
            self.anchor = (0, b"", digest([]))
