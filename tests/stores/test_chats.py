"""What clients are promised of sessions, with sessions in Redis: the same tests as of those in memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gateway, StartGateway, Upstream, gateways_before
from tests.redis_process import RedisProcess
from tests.test_cancel import (
    test_a_cancel_after_the_end_changes_nothing,
    test_a_cancel_between_the_end_of_the_reply_and_the_end_of_the_stream,
    test_a_client_that_leaves_a_json_answer_stops_it,
    test_a_client_that_leaves_a_stream_stops_it_and_keeps_what_came,
    test_a_server_that_is_told_to_stop_does_not_leave_vllm_working,
    test_a_stream_cancelled_before_its_first_token_commits_nothing,
    test_a_stream_cancelled_before_vllm_accepts_it_is_an_ordinary_409,
    test_cancel_ends_a_stream_with_done_and_commits_what_came,
    test_cancel_stops_a_json_answer_and_commits_nothing,
    test_stop_session_ends_a_stream_with_done,
    test_stop_session_stops_a_json_answer,
    test_two_turns_at_once_one_wins,
    test_while_a_turn_is_in_flight,
)
from tests.test_chat import (
    test_a_pair_too_large_for_a_session_is_answered_and_forgotten,
    test_cancelling_nothing,
    test_history_undo_and_reset,
    test_sessions_do_not_mix,
    test_stopping_a_session_ends_it,
    test_texts_survive_as_they_are,
    test_the_oldest_pairs_are_forgotten_when_a_session_holds_too_much,
    test_the_system_prompt_default_own_none_and_replaced,
    test_tool_calls_are_returned_and_not_kept,
    test_what_does_not_fit_is_left_out_in_whole_pairs_and_stays_in_the_history,
)
from tests.test_idempotency import (
    test_a_failed_question_can_be_asked_again,
    test_a_kept_answer_counts_as_the_sessions_text,
    test_a_repeat_gives_the_same_answer_and_asks_nothing,
    test_a_stopped_answer_is_replaced,
    test_a_stopped_answer_stays_if_its_replacement_fails,
    test_a_stopped_answer_that_others_followed_is_an_answer,
    test_an_answer_can_be_asked_for_in_the_other_form,
    test_another_question_under_the_same_key_is_refused,
    test_earlier_answers_are_found_too,
    test_sessions_have_keys_of_their_own,
    test_what_was_taken_back_is_asked_anew,
    test_while_the_first_is_in_flight,
    test_who_went_away_in_the_middle_asks_again,
)
from tests.test_init_history import (
    test_a_grown_session_comes_back_with_what_it_left_out,
    test_the_oldest_pairs_over_the_bound_are_forgotten,
    test_the_talk_goes_on,
    test_what_history_shows_comes_back_as_it_was,
)

__all__ = [
    "test_a_cancel_after_the_end_changes_nothing",
    "test_a_cancel_between_the_end_of_the_reply_and_the_end_of_the_stream",
    "test_a_client_that_leaves_a_json_answer_stops_it",
    "test_a_client_that_leaves_a_stream_stops_it_and_keeps_what_came",
    "test_a_failed_question_can_be_asked_again",
    "test_a_grown_session_comes_back_with_what_it_left_out",
    "test_a_kept_answer_counts_as_the_sessions_text",
    "test_a_pair_too_large_for_a_session_is_answered_and_forgotten",
    "test_a_repeat_gives_the_same_answer_and_asks_nothing",
    "test_a_server_that_is_told_to_stop_does_not_leave_vllm_working",
    "test_a_stopped_answer_is_replaced",
    "test_a_stopped_answer_stays_if_its_replacement_fails",
    "test_a_stopped_answer_that_others_followed_is_an_answer",
    "test_a_stream_cancelled_before_its_first_token_commits_nothing",
    "test_a_stream_cancelled_before_vllm_accepts_it_is_an_ordinary_409",
    "test_an_answer_can_be_asked_for_in_the_other_form",
    "test_another_question_under_the_same_key_is_refused",
    "test_cancel_ends_a_stream_with_done_and_commits_what_came",
    "test_cancel_stops_a_json_answer_and_commits_nothing",
    "test_cancelling_nothing",
    "test_earlier_answers_are_found_too",
    "test_history_undo_and_reset",
    "test_sessions_do_not_mix",
    "test_sessions_have_keys_of_their_own",
    "test_stop_session_ends_a_stream_with_done",
    "test_stop_session_stops_a_json_answer",
    "test_stopping_a_session_ends_it",
    "test_texts_survive_as_they_are",
    "test_the_oldest_pairs_are_forgotten_when_a_session_holds_too_much",
    "test_the_oldest_pairs_over_the_bound_are_forgotten",
    "test_the_system_prompt_default_own_none_and_replaced",
    "test_the_talk_goes_on",
    "test_tool_calls_are_returned_and_not_kept",
    "test_two_turns_at_once_one_wins",
    "test_what_does_not_fit_is_left_out_in_whole_pairs_and_stays_in_the_history",
    "test_what_history_shows_comes_back_as_it_was",
    "test_what_was_taken_back_is_asked_anew",
    "test_while_a_turn_is_in_flight",
    "test_while_the_first_is_in_flight",
    "test_who_went_away_in_the_middle_asks_again",
]


@pytest.fixture
def start_gateway(upstream: Upstream, model_folder: Path, redis: RedisProcess) -> StartGateway:
    """Starts a gateway that keeps its sessions in Redis."""
    start = gateways_before(upstream.url, model_folder)

    def start_with_redis(port: int = 0, **settings: Any) -> AbstractContextManager[Gateway]:
        return start(port, **redis.settings, **settings)

    return start_with_redis


@pytest.fixture
def gateway(start_gateway: StartGateway) -> Iterator[Gateway]:
    with start_gateway() as started:
        yield started
