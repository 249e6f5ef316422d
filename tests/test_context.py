"""Fitting a history into a budget."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.context import Budget, ChatMessage, Pair, budget, conversation, fit
from app.errors import ContextTooLong

texts = st.text(max_size=30)
histories = st.lists(st.builds(Pair, texts, texts, st.just("stop")), max_size=12)


def count(messages: list[ChatMessage]) -> int:
    """A stand-in for a tokenizer: as much as characters, and four for each message's frame."""
    return sum(len(message["content"]) + 4 for message in messages)


@given(texts, histories, texts.filter(bool), st.integers(1, 400))
def test_what_is_sent_fits_keeps_what_must_stay_and_alternates(
    system_prompt: str, pairs: list[Pair], message: str, limit: int
) -> None:
    needed = count(conversation(system_prompt, [], message))
    if needed > limit:
        with pytest.raises(ContextTooLong) as caught:
            fit(system_prompt, pairs, message, Budget(limit, ""), count)
        assert caught.value.helpful == {"limit": limit, "needed": needed}
        return

    fitted = fit(system_prompt, pairs, message, Budget(limit, ""), count)

    assert fitted.used == count(fitted.messages) <= fitted.limit == limit
    assert fitted.history_pairs + fitted.dropped_pairs == len(pairs)
    assert fitted.messages == conversation(system_prompt, pairs[fitted.dropped_pairs :], message)
    if fitted.dropped_pairs:
        assert count(conversation(system_prompt, pairs[fitted.dropped_pairs - 1 :], message)) > limit
    roles = [m["role"] for m in fitted.messages]
    assert roles[-1] == "user"
    assert roles[:1] == (["system"] if system_prompt else roles[:1])
    assert all(first != second for first, second in pairwise(roles))


@given(histories, st.integers(1, 400))
def test_fitting_what_was_fitted_changes_nothing(pairs: list[Pair], limit: int) -> None:
    try:
        first = fit("", pairs, "вопрос", Budget(limit, ""), count)
    except ContextTooLong:
        return
    second = fit("", pairs[first.dropped_pairs :], "вопрос", Budget(limit, ""), count)
    assert second.messages == first.messages
    assert second.dropped_pairs == 0


def test_a_long_history_is_counted_a_few_times_only() -> None:
    calls = 0

    def counted(messages: list[ChatMessage]) -> int:
        nonlocal calls
        calls += 1
        return count(messages)

    fit("", [Pair("вопрос", "ответ", "stop")] * 1000, "ещё", Budget(500, ""), counted)
    assert calls <= 12


@pytest.mark.parametrize(
    ("max_tokens", "limit"), [(512, 7680), (192, 8000), (191, 8000), (193, 7999), (8191, 1)], ids=str
)
def test_the_budget_of_the_defaults(max_tokens: int, limit: int) -> None:
    assert budget(8000, 8192, max_tokens).limit == limit


@pytest.mark.parametrize("max_tokens", [8192, 9000])
def test_an_answer_as_long_as_the_model_leaves_no_room(max_tokens: int) -> None:
    with pytest.raises(ContextTooLong) as caught:
        budget(8000, 8192, max_tokens)
    assert caught.value.helpful == {"limit": 8192, "needed": max_tokens + 1}
