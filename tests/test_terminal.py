"""The conversation in a terminal: what the person types and sees."""

import asyncio
import base64
import json
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from client.commands import COMMANDS
from demo.stand import Server, free_port
from tests.conftest import Gateway, StartGateway, Upstream, gateways_before, wait_until_idle
from tests.proxy import Network, network_to
from tests.screen import Screen, client_on_screen
from tests.scripted_vllm import KEY, Act, Script, ScriptedVLLM, delta, event, refusal, stream_of, streamed
from tests.servers import serve, wait_until

Talk = Callable[..., Screen]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Talk]:
    """Starts the client in a terminal, with the key and a home of the test's own."""
    with ExitStack() as started:

        def open_screen(*arguments: str, columns: int = 80, rows: int = 24, **more: str) -> Screen:
            environ = {"VLLM_API_KEY": KEY, **more}
            screen = client_on_screen(*arguments, folder=tmp_path, environ=environ, columns=columns, rows=rows)
            return started.enter_context(screen)

        yield open_screen


@pytest.fixture
def talk(start: Talk, gateway: Gateway) -> Talk:
    """Starts the client in a terminal, before the gateway."""

    def open_screen(*arguments: str, **more: Any) -> Screen:
        return start("--url", gateway.url, *arguments, **more)

    return open_screen


def leave(screen: Screen) -> None:
    """Leave at an empty prompt."""
    screen.wait_for_prompt()
    screen.press("ctrl-d")
    assert screen.wait_for_end() == 0
    assert screen.text().endswith("Сессия закрыта.")


def sessions(gateway: Gateway) -> int:
    return int(gateway.http.get("/health").json()["sessions"])


def hanging(*pieces: str) -> Script:
    """A stream that says the pieces and then nothing for a long time."""
    return streamed([*(delta(content=piece) for piece in pieces), 60.0])


def said(vllm: ScriptedVLLM, number: int = -1) -> list[str]:
    """The texts of a request, without the system prompt."""
    return [message["content"] for message in vllm.seen[number].body["messages"] if message["role"] != "system"]


# --- a whole session, word for word ---

MARKDOWN = """\
# Ежи

**Ёж** — зверь *колючий*, см. [статью](http://wiki/ёж):

1. бурчит
2. топает ночью по дому так, что никто не спит
   - даже `кот`

```python
def ёж(иголок: int = 6000) -> str:
    return "🦔" * иголок
```

| кто | ест |
|-----|-----|
| ёж  | жуков и червей |

> Не будите ежа.
"""
SESSION_80 = """\
Модель /app/model. Справка — /help, выход — Ctrl-D.
Вы> Кто такой ёж?

Спрашивают про ежей.

Ежи

Ёж — зверь колючий, см. статью (http://wiki/ёж):

 1. бурчит
 2. топает ночью по дому так, что никто не спит
     • даже кот

```python
def ёж(иголок: int = 6000) -> str:
    return "🦔" * иголок
```

кто  ест
───────────────────
ёж   жуков и червей

▌ Не будите ежа.

Вы> две
  > строки

Ответ 2.

Вы> /undo
Убрано: «две…» и ответ на него.
Вы> /set temperature 7
Ошибка: temperature: нужно число от 0 до 2.
Вы> /set temperature 7
Вы>
Сессия закрыта."""
SESSION_40 = """\
Модель /app/model. Справка — /help,
выход — Ctrl-D.
Вы> Кто такой ёж?

Спрашивают про ежей.

Ежи

Ёж — зверь колючий, см. статью
(http://wiki/ёж):

 1. бурчит
 2. топает ночью по дому так, что никто
    не спит
     • даже кот

```python
def ёж(иголок: int = 6000) -> str:
    return "🦔" * иголок
```

кто  ест
───────────────────
ёж   жуков и червей

▌ Не будите ежа.

Вы> две
  > строки

Ответ 2.

Вы> /undo
Убрано: «две…» и ответ на него.
Вы> /set temperature 7
Ошибка: temperature: нужно число от 0 до
2.
Вы> /set temperature 7
Вы>
Сессия закрыта."""


@pytest.mark.parametrize(("columns", "expected"), [(80, SESSION_80), (40, SESSION_40)])
def test_a_session_word_for_word(talk: Talk, vllm: ScriptedVLLM, columns: int, expected: str) -> None:
    thoughts = [delta(reasoning="Спрашивают "), delta(reasoning="про ежей.\n")]
    acts: list[Act] = [*thoughts]
    for start_of_piece in range(0, len(MARKDOWN), 5):
        acts += [0.01, delta(content=MARKDOWN[start_of_piece : start_of_piece + 5])]
    vllm.scripts.append(streamed([*acts, *stream_of().acts]))
    screen = talk(columns=columns)
    screen.say("Кто такой ёж?")
    screen.wait_for_prompt()
    screen.type("две")
    screen.press("alt-enter")
    screen.type("строки")
    screen.wait_for_line("  > строки")
    screen.press("enter")
    screen.wait_for("Ответ 2.")
    screen.say("/undo")
    screen.say("/set temperature 7")
    screen.wait_for("Ошибка: temperature: нужно число от 0 до 2.")
    screen.wait_for_prompt("/set temperature 7")  # to be mended
    screen.press("ctrl-c")
    leave(screen)
    assert screen.text() == expected
    assert said(vllm) == ["Кто такой ёж?", MARKDOWN, "две\nстроки"]


def test_the_status_line(start_gateway: StartGateway, vllm: ScriptedVLLM, start: Talk) -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 21, "total_tokens": 61}
    usage["prompt_tokens_details"] = {"cached_tokens": 30}  # type: ignore[assignment] # vLLM nests it
    vllm.scripts += [stream_of("да " * 30), stream_of("раз", "два", gap=0.3, usage=usage)]
    with start_gateway(max_context_tokens=120, session_ttl_seconds=50) as gateway:
        screen = start("--url", gateway.url)
        screen.say("а " * 25 + "а")
        screen.say("б")
        screen.wait_for("раздва")
        screen.wait_for("сессия 50 с")
        shown = re.sub(r"\s*\n", " · ", screen.text())
        leave(screen)
    assert re.search(
        r"контекст \d+/120 · вне контекста 1 пара · кэш 75% · \d+,\d ток/с · первый токен 0,3\d с · сессия \d\d с",
        shown,
    ), shown


def test_the_reply_appears_as_it_comes(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("первое", " второе", gap=0.7))
    screen = talk()
    screen.say("считай")
    screen.wait_for("первое")
    started = time.monotonic()
    screen.wait_for("второе")
    assert time.monotonic() - started > 0.4
    leave(screen)


def test_while_nothing_comes_the_time_runs(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(Script(stream_of("вот").acts, media_type="text/event-stream", delay=1.5))
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("0:01 · Ctrl-C — остановить")
    screen.wait_for("вот")
    leave(screen)
    assert "Ctrl-C — остановить" not in screen.text()


def test_what_the_model_thinks_is_dimmed(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(reasoning="Хм, так."), *stream_of("Да.").acts]))
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("Хм, так. Да.")
    leave(screen)
    assert "\x1b[2;3mХм, так." in screen.received


# --- Ctrl-C in every state ---


def test_ctrl_c_stops_the_reply_and_keeps_the_session(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача", "ло"))
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("начало")
    screen.press("ctrl-c")
    screen.wait_for("начало Остановлено.")
    wait_until_idle(vllm, 5)
    screen.say("ещё")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert said(vllm) == ["вопрос", "начало", "ещё"]


def test_ctrl_c_while_the_model_thinks(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(reasoning="Думаю"), 60.0]))
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("Думаю")
    screen.press("ctrl-c")
    screen.wait_for("Остановлено.")
    wait_until_idle(vllm, 5)
    screen.wait_for_prompt("вопрос")


def test_ctrl_c_before_the_first_word_gives_the_question_back(talk: Talk, vllm: ScriptedVLLM) -> None:
    slow = stream_of("поздно")
    slow.delay = 60.0
    vllm.scripts.append(slow)
    screen = talk()
    screen.say("вопрос")
    wait_until(lambda: vllm.running == 1)
    screen.press("ctrl-c")
    screen.wait_for("Остановлено.")
    wait_until_idle(vllm, 5)
    screen.wait_for_prompt("вопрос")
    screen.type(" другой")
    screen.press("enter")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert said(vllm) == ["вопрос другой"]


def test_ctrl_c_at_the_prompt_drops_the_line(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.wait_for_prompt()
    screen.type("недописан")
    screen.wait_for_prompt("недописан")
    screen.press("ctrl-c")
    screen.wait_for_prompt()
    screen.press("ctrl-c")
    screen.wait_for("Выйти — Ctrl-D.")
    leave(screen)
    assert vllm.seen == []


@pytest.mark.parametrize("key", ["ctrl-c", "ctrl-d"])
def test_leaving_instead_of_typing_a_key(talk: Talk, gateway: Gateway, key: str) -> None:
    screen = talk(VLLM_API_KEY="")
    screen.wait_for("Ключ vLLM:")
    screen.press(key)
    assert screen.wait_for_end() == 130
    assert sessions(gateway) == 0


def test_ctrl_c_at_a_question_is_no(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.md"
    path.write_text("моё", encoding="utf-8")
    screen = talk()
    screen.say("вопрос")
    screen.say(f"/save {path.name}")
    screen.wait_for("Заменить? [д/Н]")
    screen.press("ctrl-c")
    screen.wait_for("Прервано.")
    screen.say(f"/save {path.name}")
    screen.type("может быть")
    screen.press("enter")
    screen.wait_for("Ответьте д (да) или н (нет).")
    screen.press("enter")
    screen.wait_for("Не сохранено.")
    leave(screen)
    assert path.read_text(encoding="utf-8") == "моё"


def silent_gateway(*silent: str) -> Starlette:
    """A gateway that begins a reply and never ends it, and that never answers on the silent paths."""

    async def answer(request: Request) -> Response:
        path = request.url.path
        if path in silent:
            await asyncio.sleep(60)
        if path == "/chat":
            return StreamingResponse(endless(), media_type="text/event-stream")
        if path == "/history":
            return JSONResponse({"system_prompt": "", "messages": [], "expires_in": 600})
        return JSONResponse({"session_id": "x", "expires_in": 600, "status": "ok", "model": "m", "warnings": []})

    async def endless() -> Any:
        yield 'event: delta\ndata: {"text":"нача"}\n\n'
        await asyncio.sleep(60)

    paths = ["/health", "/init_session", "/chat", "/cancel", "/history", "/undo", "/stop_session"]
    return Starlette(routes=[Route(path, answer, methods=["GET", "POST"]) for path in paths])


def test_a_second_ctrl_c_breaks_off_what_the_first_could_not(start: Talk) -> None:
    with serve(silent_gateway("/cancel")) as url:
        screen = start("--url", url)
        screen.say("вопрос")
        screen.wait_for("нача")
        screen.press("ctrl-c")
        screen.wait_for("останавливаю; ещё раз Ctrl-C — оборвать связь")
        screen.press("ctrl-c")
        screen.wait_for("Связь оборвана")
        screen.press("ctrl-c")  # the gateway is asked what it kept, and is silent
        screen.wait_for_prompt("вопрос")


def test_ctrl_c_while_a_command_waits(start: Talk) -> None:
    with serve(silent_gateway("/undo", "/stop_session")) as url:
        screen = start("--url", url)
        screen.say("/undo")
        time.sleep(0.3)
        screen.press("ctrl-c")
        screen.wait_for("Прервано.")
        screen.wait_for_prompt()
        screen.press("ctrl-d")
        time.sleep(0.3)
        screen.press("ctrl-c")
        assert screen.wait_for_end() == 0
        assert "сессия закроется сама" in screen.text()


# --- what goes wrong ---


def test_an_error_gives_the_question_back(talk: Talk, vllm: ScriptedVLLM) -> None:
    broken = streamed([delta(content="нача"), event({"error": {"message": "engine died"}})])
    vllm.scripts += [refusal(500, "engine died"), broken]
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("Ошибка: vLLM ответил ошибкой 500.")
    screen.wait_for_prompt("вопрос")
    screen.press("enter")
    screen.wait_for("нача Ошибка: vLLM прервал ответ")
    screen.wait_for_prompt("вопрос")
    screen.press("enter")
    screen.wait_for("Ответ 3.")
    leave(screen)
    assert said(vllm) == ["вопрос"]


def test_a_wrong_parameter_and_how_to_be_rid_of_it(talk: Talk, gateway: Gateway) -> None:
    wait_until(lambda: gateway.http.get("/health").json()["status"] == "ok")
    screen = talk()
    screen.say("/set top_pp 1")
    screen.say("вопрос")
    screen.wait_for("Ближайшее известное имя: top_p. Убрать: /set top_pp null.")
    screen.wait_for_prompt("вопрос")
    screen.press("ctrl-c")
    screen.say("/set top_pp null")
    screen.say("вопрос")
    screen.wait_for("Ответ 1.")
    leave(screen)


def test_an_expired_session_is_opened_anew_with_its_talk(start: Talk, upstream: Upstream, model_folder: Path) -> None:
    with gateways_before(upstream.url, model_folder)(session_ttl_seconds=1) as gateway:
        screen = start("--url", gateway.url)
        screen.say("раз")
        screen.wait_for("сессия истекла")
        screen.say("два")
        screen.wait_for("Открываю новую. Продолжить прежний разговор (1 пара)? [Д/н]")
        screen.press("enter")
        screen.wait_for("Ответ 2.")
        assert said(upstream.script) == ["раз", "Ответ 1.", "два"]
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
        assert said(upstream.script) == ["три"]
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
    assert said(upstream.script) == ["раз", "Жив.", "два"]


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
    assert said(vllm) == ["раз", "Ответ 1.", "два"], "the session has lived on"
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


# --- a network that breaks ---


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
    assert said(vllm) == ["раз", "начало", "два"]


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
    assert said(vllm) == ["раз", "начало", "два"]


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
    assert said(vllm) == ["раз", "Ответ 1.", "два"]


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
    assert said(vllm) == ["раз", "Ответ 1.", "два"]


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
    assert [text[:8] for text in said(upstream.script)[::2]] == ["вопрос 3", "вопрос 4", "ещё"]


# --- commands ---


def test_help_names_every_command_and_key(talk: Talk) -> None:
    screen = talk(rows=50)
    screen.say("/help")
    screen.wait_for("Ctrl-X Ctrl-E")
    for name, command in COMMANDS.items():
        screen.wait_for(f"{name} {command.usage} {command.does}"[:60])
    leave(screen)


def test_an_unknown_command(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.say("/regenerat")
    screen.wait_for("Ошибка: Нет команды /regenerat. Может быть, /regenerate?")
    screen.wait_for_prompt("/regenerat")
    screen.press("ctrl-c")
    screen.say("/undo всё")
    screen.wait_for("Ошибка: У /undo нет параметров.")
    screen.wait_for_prompt("/undo всё")
    screen.press("ctrl-c")
    screen.say(" /etc/passwd — что это?")
    screen.wait_for("Ответ 1.")
    leave(screen)
    assert said(vllm) == [" /etc/passwd — что это?"]


def test_the_system_prompt(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk("--system", "Ты — ёж.")
    screen.say("/system")
    screen.wait_for("Вы> /system Ты — ёж. Вы>")
    screen.say("/system Ты — уж.")
    screen.wait_for("Системный промпт сменён.")
    screen.say("вопрос")
    screen.wait_for("Ответ 1.")
    assert vllm.seen[-1].body["messages"][0] == {"role": "system", "content": "Ты — уж."}
    screen.say('/system ""')
    screen.say("/system")
    screen.wait_for("Системного промпта нет.")
    leave(screen)


def test_parameters(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk("--max-tokens", "9", "--set", "seed=1")
    screen.say("/set temperature 0.5")
    screen.say("/set seed null")
    screen.say('/set chat_template_kwargs {"enable_thinking": false}')
    screen.say("/set")
    screen.wait_for('max_tokens = 9 temperature = 0.5 chat_template_kwargs = {"enable_thinking": false}')
    screen.say("/set top_p")
    screen.wait_for("Ошибка: Какое значение у top_p?")
    screen.wait_for_prompt("/set top_p")
    screen.press("ctrl-c")
    screen.say("вопрос")
    screen.wait_for("Ответ 1.")
    leave(screen)
    body = vllm.seen[0].body
    assert (body["max_tokens"], body["temperature"], body.get("seed")) == (9, 0.5, None)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_history_undo_and_reset(talk: Talk, gateway: Gateway) -> None:
    screen = talk()
    screen.say("раз")
    screen.say("два")
    screen.wait_for("Ответ 2.")
    screen.say("/undo")
    screen.wait_for("Убрано: «два» и ответ на него.")
    screen.say("/history")
    screen.wait_for("Вы: раз Модель: Ответ 1. Вы>")
    screen.say("/reset")
    screen.wait_for("Разговор начат сначала.")
    screen.say("/undo")
    screen.wait_for("Ошибка: История сессии пуста")
    for command in ("/regenerate", "/edit", "/copy", "/save a.md"):
        screen.say(command)
        screen.wait_for(f"Вы> {command} Ошибка: Разговор пуст")
    assert sessions(gateway) == 1
    leave(screen)


def test_regenerate(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.say("/regenerate")
    screen.wait_for("Ответ 2.")
    screen.say("два")
    screen.wait_for("Ответ 3.")
    leave(screen)
    assert said(vllm) == ["раз", "Ответ 2.", "два"]


def test_edit(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.say("/edit")
    screen.wait_for_prompt("раз")
    screen.press("ctrl-c")  # thought better of it
    screen.say("два")
    screen.wait_for("Ответ 2.")
    assert said(vllm) == ["раз", "Ответ 1.", "два"]
    screen.say("/edit")
    screen.wait_for_prompt("два")
    screen.type(" с половиной")
    screen.press("enter")
    screen.wait_for("Ответ 3.")
    leave(screen)
    assert said(vllm) == ["раз", "Ответ 1.", "два с половиной"]


def test_an_answer_that_could_not_be_replaced_stays(talk: Talk, vllm: ScriptedVLLM, gateway: Gateway) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    vllm.scripts.append(refusal(500, "engine died"))
    screen.say("/regenerate")
    screen.wait_for("Ошибка: vLLM ответил ошибкой 500.")
    screen.wait_for("Прежние вопрос и ответ остаются, пока не отправите этот; Ctrl-C — передумать.")
    screen.wait_for_prompt("раз")
    assert sessions(gateway) == 1
    screen.press("ctrl-c")
    screen.say("два")
    screen.wait_for("Ответ 3.")
    leave(screen)
    assert said(vllm) == ["раз", "Ответ 1.", "два"]


def test_an_answer_that_could_not_be_replaced_comes_back_with_the_gateway(
    start: Talk, upstream: Upstream, model_folder: Path
) -> None:
    starts, port = gateways_before(upstream.url, model_folder), free_port()
    with starts(port=port) as gateway:
        screen = start("--url", gateway.url)
        screen.say("раз")
        screen.wait_for("Ответ 1.")
        upstream.script.scripts.append(hanging("друг"))
        screen.say("/regenerate")
        screen.wait_for("друг")
    screen.wait_for("Ошибка: Шлюз останавливают")
    screen.wait_for_prompt("раз")
    screen.press("ctrl-c")
    with starts(port=port):
        screen.say("два")
        screen.wait_for("Продолжить прежний разговор (1 пара)? [Д/н]")
        screen.press("enter")
        screen.wait_for("Ответ 3.")
        leave(screen)
    assert said(upstream.script) == ["раз", "Ответ 1.", "два"]


@pytest.mark.parametrize("form", ["md", "json"])
def test_a_talk_is_saved_and_loaded(
    talk: Talk, gateway: Gateway, vllm: ScriptedVLLM, tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"talk.{form}"
    screen = talk("--system", "Ты — ёж.")
    screen.say("раз")
    screen.say(f"/save {path.name}")
    screen.wait_for("Разговор сохранён (1 пара)")
    screen.say("два")
    screen.wait_for("Ответ 2.")
    screen.say(f"/load {path.name}")
    screen.wait_for("Нынешний разговор (2 пары) закончится. Загрузить другой? [д/Н]")
    screen.type("да")
    screen.press("enter")
    screen.wait_for("Разговор продолжается в новой сессии, 1 пара.")
    screen.wait_for("контекст")
    screen.say("три")
    screen.wait_for("Ответ 3.")
    screen.say("/load /нет/такого.md")
    screen.wait_for("Ошибка: /нет/такого.md не читается: нет такого файла или папки.")
    screen.wait_for_prompt("/load /нет/такого.md")
    screen.press("ctrl-c")
    assert sessions(gateway) == 1
    leave(screen)
    assert vllm.seen[-1].body["messages"][0]["content"] == "Ты — ёж."
    assert said(vllm) == ["раз", "Ответ 1.", "три"]


def test_a_talk_under_the_default_prompt_is_saved_with_it(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    screen = talk()
    screen.say("раз")
    screen.say(f"/save {path.name}")
    screen.wait_for("Разговор сохранён (1 пара)")
    leave(screen)
    assert json.loads(path.read_text(encoding="utf-8"))["system_prompt"].startswith("Ты — полезный ассистент.")


def test_copy_by_the_desktops_clipboard(talk: Talk, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "xclip"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/clipboard\nsleep 60 &\n", encoding="utf-8")
    program.chmod(0o755)
    screen = talk(PATH=f"{program.parent}:/usr/bin:/bin", DISPLAY=":0")
    screen.say("раз")
    screen.say("/copy")
    screen.wait_for("Последний ответ скопирован.")
    leave(screen)
    assert (tmp_path / "clipboard").read_text(encoding="utf-8") == "Ответ 1."


def test_copy_by_the_terminal(talk: Talk, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "xclip"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    screen = talk(PATH=f"{program.parent}:/usr/bin:/bin", DISPLAY=":99")
    screen.say("раз")
    screen.say("/copy")
    screen.wait_for("Последний ответ передан терминалу.")
    leave(screen)
    assert f"\x1b]52;c;{base64.b64encode('Ответ 1.'.encode()).decode()}\x07" in screen.received


def test_stats(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts += [stream_of("а", "б", gap=0.1), stream_of("в", usage=None)]
    screen = talk()
    screen.say("раз")
    screen.say("два")
    screen.wait_for_prompt()
    screen.say("/stats")
    screen.wait_for("ходов с запуска 2 токенов в запросах 11, из кэша 4 токенов в ответах 3 скорость, медиана")
    screen.wait_for("в разговоре 2 пары сессия 10 мин")
    leave(screen)


# --- leaving and coming back ---


def test_exit_stops_the_session(talk: Talk, gateway: Gateway) -> None:
    screen = talk()
    screen.say("/exit")
    assert screen.wait_for_end() == 0
    assert sessions(gateway) == 0


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
    assert said(vllm) == ["раз", "Ответ 1.", "два"]
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
    screen.wait_for("Прервано.")
    screen.wait_for_prompt("раз")
    screen.press("enter")
    screen.wait_for("Ключ vLLM: Прервано. Вы> раз")
    screen.type(KEY)
    screen.press("enter")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert said(vllm) == ["раз"]
    assert sessions(gateway) == 0


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
    assert said(vllm) == ["раз", "Ответ 1.", "два"]
    assert sessions(gateway) == 0
    screen = talk("--continue")
    screen.wait_for("Продолжать нечего: открытой сессии нет. Начинаю новую.")
    leave(screen)


def test_a_session_survives_the_terminal(talk: Talk, gateway: Gateway) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.child.close(force=True)
    assert sessions(gateway) == 1
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


# --- typing ---


def test_lines_are_remembered_across_runs(talk: Talk, tmp_path: Path) -> None:
    screen = talk()
    screen.say("первое сообщение")
    leave(screen)
    [path] = tmp_path.glob(".local/state/simple-chat-gateway/history")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    screen = talk()
    screen.wait_for_prompt()
    screen.press("up")
    screen.wait_for_prompt("первое сообщение")
    screen.press("ctrl-c", "ctrl-r")
    screen.type("перв")
    screen.wait_for("I-search backward")
    screen.press("enter")
    screen.wait_for_prompt("первое сообщение")


def test_a_home_that_cannot_be_written(talk: Talk) -> None:
    screen = talk(HOME="/proc/нет")
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    leave(screen)


def test_what_is_pasted_is_one_message(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.wait_for_prompt()
    screen.paste("раз\r\nдва\rтри")
    screen.wait_for_line("  > три")
    screen.press("enter")
    screen.wait_for("Ответ 1.")
    leave(screen)
    assert said(vllm) == ["раз\nдва\nтри"]


def test_commands_are_completed(talk: Talk) -> None:
    screen = talk()
    screen.wait_for_prompt()
    screen.type("/re")
    screen.wait_for("/regenerate /reset")
    screen.press("tab")
    screen.wait_for_prompt("/regenerate")
    screen.press("tab")
    screen.wait_for_prompt("/reset")
    screen.press("enter")
    screen.wait_for("Разговор начат сначала.")
    leave(screen)


def test_what_is_typed_during_a_reply_waits(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("раз", "два", gap=0.5))
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("0:00")
    screen.type("ещё")
    screen.wait_for_prompt("ещё")
    assert "раздва" in screen.text(), "it was not mixed into the reply"
    screen.press("enter")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert said(vllm) == ["вопрос", "раздва", "ещё"]


def test_what_is_typed_before_ctrl_c_waits_too(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача"))
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("нача")
    screen.type("следующий")
    screen.press("ctrl-c")
    screen.wait_for("Остановлено.")
    screen.wait_for_prompt("следующий")


def test_an_editor_gives_the_line_back(talk: Talk, tmp_path: Path, vllm: ScriptedVLLM) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "поправлено" > "$1"\n', encoding="utf-8")
    editor.chmod(0o755)
    screen = talk(EDITOR=str(editor))
    screen.wait_for_prompt()
    screen.type("\x18\x05")
    screen.wait_for_prompt("поправлено")
    assert vllm.seen == []


def test_an_edit_that_was_given_up_replaces_nothing(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.say("/edit")
    screen.wait_for_prompt("раз")
    screen.press("ctrl-u", "enter")
    screen.say("два")
    screen.wait_for("Ответ 2.")
    leave(screen)
    assert said(vllm) == ["раз", "Ответ 1.", "два"]


def test_a_key_does_not_come_back_by_an_arrow(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "a.md").touch()
    screen = talk(VLLM_API_KEY="")
    screen.wait_for("Ключ vLLM:")
    screen.type(KEY)
    screen.press("enter")
    screen.say("раз")
    screen.say("/save a.md")
    screen.wait_for("[д/Н]")
    screen.press("up")
    screen.type("н")
    screen.press("enter")
    leave(screen)
    assert KEY not in screen.received


def test_an_empty_line_is_no_message(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.wait_for_prompt()
    screen.type("  ")
    screen.press("enter")
    leave(screen)
    assert vllm.seen == []


# --- other terminals ---


def test_a_models_text_cannot_steer_the_terminal(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("a\x1b[2Jb\x07c\x9b1md\r[bold]e[/bold] :smile:\tf"))
    screen = talk()
    screen.say("вопрос")
    screen.wait_for("a\ufffd[2Jb\ufffdc\ufffd1md[bold]e[/bold] :smile:")
    leave(screen)
    assert "\x1b[2J" not in screen.received
    assert "\x07" not in screen.received


def test_a_dumb_terminal(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(reasoning="Хм."), *stream_of("**Да**, ", "так.").acts]))
    screen = talk(TERM="dumb")
    screen.wait_for_prompt()
    screen.type("вопрос\n")
    screen.wait_for("Хм. **Да**, так. [контекст")
    screen.wait_for("сессия 10 мин]")
    screen.say("/history")
    screen.wait_for("Модель: **Да**, так.")
    leave(screen)
    assert "\x1b" not in screen.received


def test_no_color(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("**Да** `код`\n\n```python\nx = 1  # раз\n```"))
    screen = talk(NO_COLOR="1")
    screen.say("вопрос")
    screen.wait_for("# раз ```")
    screen.say("/foo")
    screen.wait_for("Ошибка:")
    screen.wait_for_prompt("/foo")
    screen.press("ctrl-c")
    leave(screen)
    colours = [int(code) for codes in re.findall(r"\x1b\[([0-9;]+)m", screen.received) for code in codes.split(";")]
    assert [code for code in colours if 30 <= code <= 49 or 90 <= code <= 107] == []
