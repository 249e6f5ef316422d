"""A session by itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.context import Pair
from app.errors import NothingToUndo
from app.sessions import Session


def test_undo_of_nothing() -> None:
    with pytest.raises(NothingToUndo):
        Session(SecretStr("key"), "").undo()


def test_a_session_does_not_show_its_secrets() -> None:
    session = Session(SecretStr("the-key"), "the prompt")
    session.commit(Pair.of("the question", "the answer", "stop"), 0, 1000)
    shown = repr(session)
    for secret in ("the-key", "the prompt", "the question", "the answer", session.id):
        assert secret not in shown
    assert session.id not in session.public_id
    assert session.public_id == session.public_id != Session(SecretStr("the-key"), "").public_id


pieces = st.text("aя", max_size=20)
commits = st.tuples(st.just("commit"), pieces, pieces, st.integers(0, 5))
restores = st.tuples(st.just("restore"), st.lists(pieces, max_size=5))
prompts = st.tuples(st.just("prompt"), pieces.map(lambda text: text[:15]))


@given(
    st.lists(st.one_of(commits, restores, prompts, st.tuples(st.sampled_from(["undo", "reset"]))), max_size=40),
    st.integers(30, 200),
)
def test_the_text_stays_within_its_bound_whatever_happens(steps: list[tuple[Any, ...]], max_bytes: int) -> None:
    session = Session(SecretStr("key"), "промпт")
    committed = removed = 0
    for name, *arguments in steps:
        if name == "commit":
            user, assistant, dropped = arguments
            session.commit(Pair.of(user, assistant, "stop"), min(dropped, len(session.pairs)), max_bytes)
            committed += 1
        elif name == "restore":
            session.extend([Pair.of(text, text, None) for text in arguments[0]], max_bytes)
            committed += len(arguments[0])
        elif name == "prompt":
            session.set_system_prompt(arguments[0], max_bytes)
        elif name == "undo" and session.pairs:
            session.undo()
            removed += 1
        elif name == "reset":
            session.reset()
            committed = removed = 0
        text_bytes = len(session.system_prompt.encode()) + sum(pair.size_bytes for pair in session.pairs)
        assert text_bytes <= max_bytes
        assert len(session.pairs) + session.forgotten_pairs + removed == committed
        assert 0 <= session.dropped_pairs <= len(session.pairs)
