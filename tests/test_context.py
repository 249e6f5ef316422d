"""Fitting a history into a budget."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.context import NO_SURPLUS, Budget, Pair, Surplus, Window, budget, conversation, fit
from app.errors import ContextTooLong

texts = st.text(max_size=30)
histories = st.lists(st.builds(Pair.of, texts, texts, st.just("stop")), max_size=12)


class Talk:
    """A history by its pairs' tokens alone; counts how often it was counted."""

    def __init__(self, pairs: list[int], rest: int) -> None:
        """`rest` are the tokens of what is always sent."""
        self.pairs = len(pairs)
        self.counted = 0
        self._tokens = [rest, *accumulate(reversed(pairs), initial=rest)][1:][::-1]

    def count(self, start: int) -> int:
        self.counted += 1
        return self._tokens[start]

    def fit(self, start: int | None, allowed: Budget) -> Window:
        return fit(self.pairs, start, allowed, self.count)


def allow(limit: int, ratio: float) -> Budget:
    return budget(limit, limit + 1, 1, ratio)


talks = st.builds(Talk, st.lists(st.integers(1, 100), max_size=30), st.integers(1, 200))
budgets = st.builds(allow, st.integers(1, 600), st.floats(0.01, 1))
starts = st.none() | st.integers(0, 30)


@given(talks, budgets, starts)
def test_what_is_sent_fits_and_is_as_much_as_the_rules_allow(talk: Talk, allowed: Budget, start: int | None) -> None:
    start = None if start is None else min(start, talk.pairs)
    window = talk.fit(start, allowed)

    assert window.used == talk.count(window.start)
    bare = talk.count(talk.pairs)
    if bare > allowed.limit:
        assert window == Window(talk.pairs, bare)
        return
    assert window.used <= allowed.limit
    assert 0 <= window.start <= talk.pairs
    before = 0 if start is None else start
    fitted_before = talk.count(before) <= allowed.limit
    if window.start == before:
        assert fitted_before
    if fitted_before and window.start != before:
        assert window.start < before, "nothing is left out that need not be"
        assert window.used <= allowed.target, "it grows back to the target at most"
    if not fitted_before:
        assert window.start > before
        one_more = window.start - 1
        assert talk.count(one_more) > allowed.target or one_more == before, "it goes to the target and no further"
        assert window.used <= allowed.target or window.start >= talk.pairs - 1


@given(talks, budgets, starts)
def test_fitting_what_was_fitted_changes_nothing(talk: Talk, allowed: Budget, start: int | None) -> None:
    first = talk.fit(None if start is None else min(start, talk.pairs), allowed)
    assert talk.fit(first.start, allowed) == first


@given(st.lists(st.integers(1, 60), min_size=60, max_size=60), st.floats(0.2, 0.9), st.integers(200, 900))
@example([30] * 60, 0.7, 300)
def test_the_window_stands_still_between_cuts(pairs: list[int], ratio: float, limit: int) -> None:
    """At a steady limit it moves only when the prompt would be over it, and never back."""
    allowed, start, moves = allow(limit, ratio), 0, 0
    for turn in range(len(pairs)):
        talk = Talk(pairs[:turn], pairs[turn] + 20)
        window = talk.fit(start, allowed)
        assert window.start >= start
        if window.start > start:
            assert talk.count(start) > limit
            moves += 1
        start = window.start
    freed_by_a_cut = limit - ratio * limit - 2 * 60
    if freed_by_a_cut > 0:
        assert moves <= sum(pairs) / freed_by_a_cut


surpluses = st.builds(Surplus.seen, st.integers(0, 9000), st.integers(0, 9000))


@given(surpluses, surpluses, st.integers(0, 9000))
def test_what_a_surplus_leaves_of_a_bound_is_as_much_as_fits(one: Surplus, other: Surplus, bound: int) -> None:
    surplus = one.joined(other)
    counted = surplus.taken_off(bound)
    assert 0 <= counted <= bound
    assert counted + surplus.of(counted) <= bound
    assert counted + 1 + surplus.of(counted + 1) > bound


@given(st.integers(1, 9000), st.integers(0, 9000))
def test_a_surplus_that_was_seen_is_expected_again(counted: int, theirs: int) -> None:
    surplus = Surplus.seen(counted, theirs)
    assert counted + surplus.of(counted) == max(counted, theirs)
    assert (surplus == NO_SURPLUS) == (theirs <= counted)


def test_ratio_one_goes_pair_by_pair() -> None:
    allowed = allow(100, 1)
    starts = [Talk([10] * turn, 10).fit(max(0, turn - 10), allowed).start for turn in range(20)]
    assert starts == [max(0, turn - 9) for turn in range(20)]


def test_a_budget_that_was_small_once_does_not_cost_the_history() -> None:
    talk = Talk([10] * 20, 10)
    small = talk.fit(0, allow(60, 0.5))
    assert small == Window(18, 30)
    assert talk.fit(small.start, allow(400, 0.7)) == Window(0, 210)
    assert talk.fit(small.start, allow(250, 0.7)) == Window(4, 170), "back over pairs within the target only"


def test_the_last_pair_stays_if_it_fits_at_all() -> None:
    """«Что в этом документе?» right after the document, with small talk before it."""
    document = Talk([20, 20, 80], 5)
    assert document.fit(0, allow(100, 0.7)) == Window(2, 85)
    assert Talk([20, 20, 80], 25).fit(0, allow(100, 0.7)) == Window(3, 25)


def test_where_nothing_moves_one_window_is_counted() -> None:
    talk = Talk([10] * 1000, 10)
    assert talk.fit(0, allow(20_000, 0.7)) == Window(0, 10_010)
    assert talk.counted == 1
    talk.counted = 0
    assert talk.fit(500, allow(6000, 0.7)) == Window(500, 5010)
    assert talk.counted == 1


@pytest.mark.parametrize("start", [0, None])
def test_a_long_history_is_counted_a_few_times_and_from_its_end(start: int | None) -> None:
    counted: list[int] = []

    def count(start: int) -> int:
        counted.append(10_000 - start)
        return 10 * (10_000 - start) + 10

    assert fit(10_000, start, allow(1000, 0.7), count) == Window(9931, 700)
    assert len(counted) <= 30
    looked_at = counted[1:] if start == 0 else counted
    assert sum(looked_at) < 1500, "pairs in all windows together"


@given(texts, histories, texts.filter(bool), st.booleans())
def test_a_conversation_alternates_and_holds_everything(
    system_prompt: str,
    pairs: list[Pair],
    message: str,
    folded: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    messages = conversation(system_prompt, pairs, message, folded=folded)
    if folded and system_prompt:
        first = messages[0]["content"]
        assert first.startswith(f"{system_prompt}\n\n")
        messages[0]["content"] = first.removeprefix(f"{system_prompt}\n\n")
    elif system_prompt:
        assert messages.pop(0) == {"role": "system", "content": system_prompt}
    said = [text for pair in pairs for text in (pair.user, pair.assistant)] + [message]
    assert [m["content"] for m in messages] == said
    assert all(first["role"] != second["role"] for first, second in pairwise(messages))
    assert messages[0]["role"] == messages[-1]["role"] == "user"


@pytest.mark.parametrize(
    ("max_tokens", "limit", "target"),
    [(512, 7680, 5376), (192, 8000, 5600), (191, 8000, 5600), (193, 7999, 5599), (8191, 1, 0)],
    ids=str,
)
def test_the_budget_of_the_defaults(max_tokens: int, limit: int, target: int) -> None:
    allowed = budget(8000, 8192, max_tokens, 0.7)
    assert (allowed.limit, allowed.target) == (limit, target)


@pytest.mark.parametrize("max_tokens", [8192, 9000])
def test_an_answer_as_long_as_the_model_leaves_no_room(max_tokens: int) -> None:
    with pytest.raises(ContextTooLong) as caught:
        budget(8000, 8192, max_tokens, 0.7)
    assert caught.value.helpful == {"limit": 8192, "needed": max_tokens + 1}
