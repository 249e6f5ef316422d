"""The event decoder: what comes out does not depend on how the bytes came in."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sse import Decoder, EventTooLarge, encode

STREAM = b': hello\n\ndata: {"a": 1}\r\n\r\ndata: two\ndata: lines\n\nevent: x\nid: 7\ndata:tight\n\ndata: \xd0\x9f\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"tight", "П".encode()]


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    decoder = Decoder(1000)
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    assert [event for piece in pieces for event in decoder.feed(piece)] == EVENTS


def test_an_unfinished_event_is_held_back() -> None:
    decoder = Decoder(1000)
    assert list(decoder.feed(b"data: half\n")) == []
    assert list(decoder.feed(b"\n")) == [b"half"]


@pytest.mark.parametrize("piece", [b"x" * 50, b"data: 123456789\n"], ids=["one long line", "many lines"])
def test_an_event_over_the_bound_is_refused_before_it_ends(piece: bytes) -> None:
    decoder = Decoder(100)
    assert list(decoder.feed(piece)) == []
    with pytest.raises(EventTooLarge):
        [list(decoder.feed(piece)) for _ in range(20)]


def test_an_event_over_the_bound_is_refused_though_it_ends_in_the_same_read() -> None:
    events = Decoder(100).feed(b"data: fine\n\ndata: " + b"x" * 200 + b"\n\n")
    assert next(events) == b"fine", "what came before it is not lost"
    with pytest.raises(EventTooLarge):
        next(events)


def test_the_bound_is_for_one_event_not_for_the_stream() -> None:
    decoder = Decoder(100)
    assert sum(len(list(decoder.feed(b"data: " + b"x" * 60 + b"\n\n"))) for _ in range(50)) == 50


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_encoding_in_one_event(text: str) -> None:
    wire = encode("delta", {"text": text})
    assert wire.startswith(b"event: delta\ndata: ")
    [data] = Decoder(10_000).feed(wire)
    assert json.loads(data) == {"text": text}
