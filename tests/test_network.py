"""Talks over a network that breaks: nothing typed is lost, nothing is said twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Gateway, Upstream, gateways_before, wait_until_idle
from tests.proxy import Network, network_to
from tests.screen import Talk, leave
from tests.scripted_vllm import (
    ScriptedVLLM,
    hanging,
    refusal,
)
from tests.servers import wait_until


@pytest.fixture
def network(gateway: Gateway) -> Iterator[Network]:
    """A network before the gateway."""
    with network_to(gateway.url) as between:
        yield between


def test_what_the_gateway_kept_of_a_broken_reply_is_told(start: Talk, network: Network, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача", "ло"))
    screen = start("--url", network.url)
    screen.say("раз")
    screen.wait_for("начало")
    network.cut()
    screen.wait_for("Ошибка: Нет связи со шлюзом")
    screen.wait_for("Вопрос и то, что успело прийти, шлюз сохранил.")
    screen.say("два")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert vllm.said() == ["раз", "начало", "два"]


def test_a_question_that_came_through_is_not_asked_twice(start: Talk, network: Network, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача", "ло"))
    screen = start("--url", network.url)
    screen.say("раз")
    screen.wait_for("начало")
    network.go_down()
    screen.wait_for("Ошибка: Нет связи со шлюзом")
    screen.wait_for_prompt("раз")
    network.is_up = True
    screen.press("enter")
    screen.wait_for("Вопрос и то, что успело прийти, шлюз сохранил.")
    screen.say("два")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert vllm.said() == ["раз", "начало", "два"]


def test_an_undo_whose_answer_is_lost_is_not_done_twice(start: Talk, network: Network, vllm: ScriptedVLLM) -> None:
    screen = start("--url", network.url)
    for number, message in enumerate(["раз", "два", "три"], start=1):
        screen.say(message)
        screen.wait_for(f"Ответ {number}.")
    network.drop_answer_to(b"POST /undo")
    screen.say("/undo")
    screen.wait_for("Ошибка: Нет связи со шлюзом")
    screen.wait_for_prompt("/undo")
    screen.press("ctrl-c")
    screen.say("/stats")
    screen.say("/regenerate")
    screen.wait_for("Ответ 4.")
    leave(screen)
    assert vllm.said() == ["раз", "Ответ 1.", "два"]


def test_a_question_is_not_lost_to_one_that_had_come_through(start: Talk, network: Network, vllm: ScriptedVLLM) -> None:
    vllm.scripts += [hanging("нача", "ло"), refusal(500, "engine died")]
    screen = start("--url", network.url)
    screen.say("раз")
    screen.wait_for("начало")
    network.go_down()
    screen.wait_for("Ошибка: Нет связи со шлюзом")
    screen.wait_for_prompt("раз")
    network.is_up = True
    screen.press("ctrl-u")
    screen.say("два")
    screen.wait_for("Вопрос и то, что успело прийти, шлюз сохранил.")
    screen.wait_for("Ошибка: vLLM ответил ошибкой 500.")
    screen.wait_for_prompt("два")


def test_a_question_that_never_arrived_is_not_told_to_be_kept(
    start: Talk, network: Network, vllm: ScriptedVLLM, tmp_path: Path
) -> None:
    (tmp_path / "talk.json").write_text('[{"role":"user","content":"а"},{"role":"assistant","content":"б"}]')
    screen = start("--url", network.url)
    screen.say("/load talk.json")
    screen.wait_for("в новой сессии, 1 пара")
    network.held = b"POST /chat"
    screen.say("раз")
    wait_until(lambda: any(data.startswith(b"POST /chat") for data in network.seen))
    network.cut()
    screen.wait_for("Ошибка: Нет связи со шлюзом")
    screen.wait_for_prompt("раз")
    assert "сохранил" not in screen.text()
    assert vllm.seen == []


def test_a_regeneration_that_breaks_loses_nothing(start: Talk, network: Network, vllm: ScriptedVLLM) -> None:
    screen = start("--url", network.url)
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    vllm.scripts.append(hanging("друг"))
    screen.say("/regenerate")
    screen.wait_for("друг")
    network.go_down()
    screen.wait_for("Ошибка: Нет связи со шлюзом")
    screen.wait_for_prompt("раз")
    network.is_up = True
    screen.press("ctrl-c")
    screen.say("два")
    screen.wait_for("Ответ 3.")
    leave(screen)
    assert vllm.said() == ["раз", "Ответ 1.", "два"]


def test_ctrl_c_before_the_question_has_arrived(start: Talk, network: Network, vllm: ScriptedVLLM) -> None:
    network.held = b"POST /chat"
    vllm.scripts.append(hanging("нача"))
    screen = start("--url", network.url)
    screen.say("раз")
    wait_until(lambda: any(data.startswith(b"POST /chat") for data in network.seen))
    screen.press("ctrl-c")
    wait_until(lambda: sum(data.startswith(b"POST /cancel") for data in network.seen) >= 2)
    network.release()
    screen.wait_for("Остановлено.")
    wait_until_idle(vllm, 5)


def test_a_talk_too_long_for_one_request_comes_back_in_part(
    start: Talk, upstream: Upstream, model_folder: Path
) -> None:
    with gateways_before(upstream.url, model_folder)(session_ttl_seconds=2, max_request_bytes=700) as gateway:
        screen = start("--url", gateway.url, rows=40)
        for number in range(1, 5):
            screen.say(f"вопрос {number} " + "о" * 40)
            screen.wait_for(f"Ответ {number}.")
        screen.wait_for("сессия истекла")
        screen.say("ещё")
        screen.wait_for("Продолжить прежний разговор (4 пары)? [Д/н]")
        screen.press("enter")
        screen.wait_for("Не вошло с начала: 2 пары.")
        screen.wait_for("Ответ 5.")
        screen.say("/regenerate")
        screen.wait_for("Ответ 6.")
        leave(screen)
    assert [text[:8] for text in upstream.script.said()[::2]] == ["вопрос 3", "вопрос 4", "ещё"]
