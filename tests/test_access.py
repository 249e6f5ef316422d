"""The way into a session and back: keys, models that load, sessions that expire, gateways that go away."""

import re
import sys
from pathlib import Path

import pytest

from demo.stand import Server, free_port
from tests.conftest import Gateway, StartGateway, Upstream, gateways_before
from tests.screen import Talk, leave
from tests.scripted_vllm import (
    KEY,
    ScriptedVLLM,
    hanging,
    stream_of,
)
from tests.servers import serve


def test_an_expired_session_is_opened_anew_with_its_talk(start: Talk, upstream: Upstream, model_folder: Path) -> None:
    with gateways_before(upstream.url, model_folder)(session_ttl_seconds=1) as gateway:
        screen = start("--url", gateway.url)
        screen.say("раз")
        screen.wait_for("сессия истекла")
        screen.say("два")
        screen.wait_for("Открываю новую. Продолжить прежний разговор (1 пара)? [Д/н]")
        screen.press("enter")
        screen.wait_for("Ответ 2.")
        assert upstream.script.said() == ["раз", "Ответ 1.", "два"]
        screen.wait_for("сессия истекла")
        screen.say("/history")
        screen.wait_for("(2 пары)? [Д/н]")
        screen.type("н")
        screen.press("enter")
        screen.wait_for("Разговор пуст.")
        screen.wait_for("сессия истекла")
        screen.say("три")
        screen.wait_for("шлюз перезапущен. Открываю новую.")
        screen.wait_for("Ответ 3.")
        assert upstream.script.said() == ["три"]
        leave(screen)


def test_a_gateway_that_is_killed_in_the_middle(start: Talk, upstream: Upstream, model_folder: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", str(port)]
    environ = {"VLLM_BASE_URL": f"{upstream.url}/v1", "TOKENIZER_PATH": str(model_folder)}
    upstream.script.scripts += [stream_of("Жив."), hanging("нача")]
    with Server("gateway-killed", command, environ, port, "/ready") as gateway:
        gateway.wait_until_ready()
        screen = start("--url", gateway.url)
        screen.say("раз")
        screen.wait_for("Жив.")
        screen.say("два")
        screen.wait_for("нача")
        gateway.process.kill()
        screen.wait_for("нача Ошибка: Нет связи со шлюзом")
        screen.wait_for_prompt("два")
        screen.press("enter")
        screen.wait_for_prompt("два")
    with Server("gateway-killed", command, environ, port, "/ready") as gateway:
        gateway.wait_until_ready()
        screen.press("enter")
        screen.wait_for("Продолжить прежний разговор (1 пара)? [Д/н]")
        screen.press("enter")
        screen.wait_for("Ответ 3.")
        leave(screen)
    assert upstream.script.said() == ["раз", "Жив.", "два"]


def test_leaving_a_gateway_that_has_gone(start: Talk, start_gateway: StartGateway) -> None:
    with start_gateway() as gateway:
        screen = start("--url", gateway.url)
        screen.wait_for_prompt()
    screen.press("ctrl-d")
    assert screen.wait_for_end() == 0
    assert "Шлюз не ответил; сессия закроется сама" in screen.text()


def test_no_gateway_at_all(start: Talk) -> None:
    screen = start("--url", f"http://127.0.0.1:{free_port()}")
    assert screen.wait_for_end() == 3
    assert screen.text().startswith("Ошибка: Нет связи со шлюзом http://127.0.0.1:")


def test_a_wrong_key_is_asked_for_again(talk: Talk) -> None:
    screen = talk(VLLM_API_KEY="wrong-1")
    screen.wait_for("Ошибка: vLLM не принимает этот ключ (из переменной VLLM_API_KEY).")
    screen.wait_for("Ключ, с которым запущен vLLM:")
    screen.type("wrong-2")
    screen.press("enter")
    screen.wait_for("не принимает этот ключ. Ключ, с которым запущен vLLM:")
    screen.type(KEY)
    screen.press("enter")
    screen.say("вопрос")
    screen.wait_for("Ответ 1.")
    leave(screen)
    assert not re.search(r"wrong|test-key", screen.text())


def test_a_key_that_stops_working(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    vllm.key = "another"
    screen.say("два")
    screen.wait_for("Ошибка: vLLM не принимает этот ключ (из переменной VLLM_API_KEY).")
    screen.wait_for("Ключ, с которым запущен vLLM:")
    screen.type("another")
    screen.press("enter")
    screen.wait_for("Ответ 2.")
    assert vllm.said() == ["раз", "Ответ 1.", "два"], "the session has lived on"
    leave(screen)


def test_waiting_for_the_model(start: Talk, model_folder: Path) -> None:
    port, script = free_port(), ScriptedVLLM()
    with gateways_before(f"http://127.0.0.1:{port}", model_folder)() as gateway:
        screen, impatient = (start("--url", gateway.url) for _ in range(2))
        for waiting in (screen, impatient):
            waiting.wait_for("Жду, пока vLLM загрузит модель. Ctrl-C — выйти")
        impatient.press("ctrl-c")
        assert impatient.wait_for_end() == 130
        with serve(script.app, port):
            screen.say("вопрос")
            screen.wait_for("Ответ 1.")
            leave(screen)


# --- leaving and coming back ---


def test_exit_stops_the_session(talk: Talk, gateway: Gateway) -> None:
    screen = talk()
    screen.say("/exit")
    assert screen.wait_for_end() == 0
    assert gateway.session_count() == 0


def test_a_resumed_session_takes_another_key_and_another_prompt(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk("--keep")
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.say("/exit")
    screen.wait_for_end()
    vllm.key = "another"
    screen = talk("--continue", "--system", "Ты — уж.", VLLM_API_KEY="another")
    screen.say("два")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert vllm.said() == ["раз", "Ответ 1.", "два"]
    assert vllm.seen[-1].body["messages"][0]["content"] == "Ты — уж."


def test_a_resumed_session_whose_key_is_not_known(talk: Talk, vllm: ScriptedVLLM, gateway: Gateway) -> None:
    screen = talk("--keep")
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.say("/exit")
    screen.wait_for_end()
    screen = talk("--continue", VLLM_API_KEY="")
    screen.say("/regenerate")  # opens a session of its own
    screen.wait_for("Ключ vLLM:")
    screen.press("ctrl-c")
    screen.wait_for("Прервано. Прежние вопрос и ответ остаются, пока не отправите этот; Ctrl-C — передумать.")
    screen.wait_for_prompt("раз")
    screen.press("enter")
    screen.wait_for("Вы> раз Ключ vLLM:")
    screen.type(KEY)
    screen.press("enter")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert vllm.said() == ["раз"]
    assert gateway.session_count() == 0


@pytest.mark.parametrize("how", ["/exit keep", "--keep"])
def test_a_kept_session_is_gone_on_with(talk: Talk, vllm: ScriptedVLLM, gateway: Gateway, how: str) -> None:
    screen = talk(*[how] * how.startswith("--"))
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.say("/exit keep" if how == "/exit keep" else "/exit")
    assert screen.wait_for_end() == 0
    assert screen.text().endswith("Сессия не закрыта: её продолжит --continue с тем же адресом.")
    screen = talk("--continue", VLLM_API_KEY="")  # the session knows its key
    screen.wait_for("Сессия продолжается: 1 пара. Показать — /history.")
    screen.say("два")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert vllm.said() == ["раз", "Ответ 1.", "два"]
    assert gateway.session_count() == 0
    screen = talk("--continue")
    screen.wait_for("Продолжать нечего: открытой сессии нет. Начинаю новую.")
    leave(screen)


def test_a_session_survives_the_terminal(talk: Talk, gateway: Gateway) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.child.close(force=True)
    assert gateway.session_count() == 1
    screen = talk("--continue")
    screen.wait_for("Сессия продолжается: 1 пара.")
    leave(screen)


def test_a_session_that_has_died_meanwhile(start: Talk, start_gateway: StartGateway) -> None:
    port = free_port()
    with start_gateway(port=port) as gateway:
        screen = start("--url", gateway.url, "--keep")
        screen.wait_for_prompt()
        screen.press("ctrl-d")
        screen.wait_for_end()
    with start_gateway(port=port) as gateway:
        screen = start("--url", gateway.url, "--continue")
        screen.wait_for("Прежняя сессия истекла. Начинаю новую.")
        leave(screen)
