"""Where a context's tokens end and the continuation's begin."""

import pytest

from quamba_edge.errors import BadText, BadUsage
from quamba_edge.tasks.tokens import Request, request, shortened
from tests.tasks.fakes import Words


def spelled(words, context, continuation, prefix=0):
    found = request(words.encode, prefix, context, continuation)
    return words.decode(found.context), words.decode(found.continuation)


def test_spaces_at_the_seam_belong_to_the_continuation():
    words = Words()
    assert spelled(words, "Question? Answer:", " yes sir") == ("Question? Answer:", " yes sir")
    assert request(words.encode, 0, "It is ", "red") == request(words.encode, 0, "It is", " red")
    assert spelled(words, "It is \n", "red") == ("It is", " \nred")


def test_both_are_encoded_as_one_text():
    words = Words()
    whole = words.encode("unlike this")
    # "un" and "like" alone are two tokens, together one: of its own the continuation has what follows len(encode("un")) tokens.
    assert request(words.encode, 0, "un", "like this") == Request(tuple(words.encode("un")), tuple(whole[1:]))


def test_an_empty_context_is_the_token_that_begins_texts():
    words = Words()
    assert spelled(words, "", " It is.") == ("<|endoftext|>", " It is.")
    assert spelled(words, "", "<|endoftext|> It is.") == ("<|endoftext|>", " It is.")
    with pytest.raises(BadUsage, match="no token that begins texts"):
        request(words.encode, None, "", " It is.")


def test_nothing_to_score_is_refused():
    words = Words()
    for context, continuation in (("a word", ""), ("", ""), ("un", "like"), ("  ", "a")):
        with pytest.raises(BadText, match="cannot be scored"):
            request(words.encode, 0, context, continuation)


def test_long_contexts_are_cut_on_their_left_where_asked():
    asked = Request((1, 2, 3, 4), (5, 6, 7))
    assert shortened(asked, None) == shortened(asked, 6) == asked
    assert shortened(asked, 5) == Request((2, 3, 4), (5, 6, 7)) and shortened(asked, 3) == Request((4,), (5, 6, 7))
    with pytest.raises(BadUsage, match="3 tokens does not fit a length of 2"):
        shortened(asked, 2)
