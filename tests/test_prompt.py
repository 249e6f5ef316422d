"""The line that a person types into."""

import stat
from pathlib import Path

from tests.screen import Talk, leave, program
from tests.scripted_vllm import (
    KEY,
    ScriptedVLLM,
    hanging,
    stream_of,
)


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
    assert vllm.said() == ["раз\nдва\nтри"]


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
    assert vllm.said() == ["вопрос", "раздва", "ещё"]


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
    editor = program(tmp_path / "editor", 'printf "поправлено" > "$1"')
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
    assert vllm.said() == ["раз", "Ответ 1.", "два"]


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
    screen.wait_for("Вы> Вы>")
    leave(screen)
    assert vllm.seen == []
