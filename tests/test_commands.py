"""The commands of the terminal client."""

import base64
import json
from pathlib import Path

import pytest

from client.commands import COMMANDS
from demo.stand import free_port
from tests.conftest import Gateway, Upstream, gateways_before
from tests.screen import Talk, leave, program
from tests.scripted_vllm import (
    ScriptedVLLM,
    hanging,
    refusal,
    stream_of,
)


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
    assert vllm.said() == [" /etc/passwd — что это?"]


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
    assert gateway.session_count() == 1
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
    assert vllm.said() == ["раз", "Ответ 2.", "два"]


def test_edit(talk: Talk, vllm: ScriptedVLLM) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    screen.say("/edit")
    screen.wait_for_prompt("раз")
    screen.press("ctrl-c")  # thought better of it
    screen.say("два")
    screen.wait_for("Ответ 2.")
    assert vllm.said() == ["раз", "Ответ 1.", "два"]
    screen.say("/edit")
    screen.wait_for_prompt("два")
    screen.type(" с половиной")
    screen.press("enter")
    screen.wait_for("Ответ 3.")
    leave(screen)
    assert vllm.said() == ["раз", "Ответ 1.", "два с половиной"]


def test_an_answer_that_could_not_be_replaced_stays(talk: Talk, vllm: ScriptedVLLM, gateway: Gateway) -> None:
    screen = talk()
    screen.say("раз")
    screen.wait_for("Ответ 1.")
    vllm.scripts.append(refusal(500, "engine died"))
    screen.say("/regenerate")
    screen.wait_for("Ошибка: vLLM ответил ошибкой 500.")
    screen.wait_for("Прежние вопрос и ответ остаются, пока не отправите этот; Ctrl-C — передумать.")
    screen.wait_for_prompt("раз")
    assert gateway.session_count() == 1
    screen.press("ctrl-c")
    screen.say("два")
    screen.wait_for("Ответ 3.")
    leave(screen)
    assert vllm.said() == ["раз", "Ответ 1.", "два"]


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
    assert upstream.script.said() == ["раз", "Ответ 1.", "два"]


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
    assert gateway.session_count() == 1
    leave(screen)
    assert vllm.seen[-1].body["messages"][0]["content"] == "Ты — ёж."
    assert vllm.said() == ["раз", "Ответ 1.", "три"]


def test_a_talk_under_the_default_prompt_is_saved_with_it(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    screen = talk()
    screen.say("раз")
    screen.say(f"/save {path.name}")
    screen.wait_for("Разговор сохранён (1 пара)")
    leave(screen)
    assert json.loads(path.read_text(encoding="utf-8"))["system_prompt"].startswith("Ты — полезный ассистент.")


def test_copy_by_the_desktops_clipboard(talk: Talk, tmp_path: Path) -> None:
    xclip = program(tmp_path / "bin" / "xclip", f"cat > {tmp_path}/clipboard\nsleep 60 &")
    screen = talk(PATH=f"{xclip.parent}:/usr/bin:/bin", DISPLAY=":0")
    screen.say("раз")
    screen.say("/copy")
    screen.wait_for("Последний ответ скопирован.")
    leave(screen)
    assert (tmp_path / "clipboard").read_text(encoding="utf-8") == "Ответ 1."


def test_copy_by_the_terminal(talk: Talk, tmp_path: Path) -> None:
    xclip = program(tmp_path / "bin" / "xclip", "exit 1")
    screen = talk(PATH=f"{xclip.parent}:/usr/bin:/bin", DISPLAY=":99")
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
