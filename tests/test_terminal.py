"""The conversation in a terminal: what the person types and sees."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.conftest import Gateway, StartGateway, wait_until_idle
from tests.screen import Talk, leave
from tests.scripted_vllm import (
    Act,
    Script,
    ScriptedVLLM,
    delta,
    event,
    hanging,
    refusal,
    stream_of,
    streamed,
)
from tests.servers import serve, wait_until

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
    assert vllm.said() == ["Кто такой ёж?", MARKDOWN, "две\nстроки"]


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
    vllm.scripts.append(Script(stream_of("вот").acts, media_type="text/event-stream", delay=3))
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
    assert vllm.said() == ["вопрос", "начало", "ещё"]


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
    assert vllm.said() == ["вопрос другой"]


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
    assert gateway.session_count() == 0


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
    assert vllm.said() == ["вопрос"]


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
