"""Talks as files: read back exactly, written whole, and what is no talk is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.api import Message
from client.transcript import Transcript, TranscriptError, load, save, to_markdown
from tests.readme import ROOT

MARKS = ["<!-- chat user -->\n", "\\<!-- chat system -->\n", "<!-- chat assistant stop -->", "<!-- chat ", "-->"]
# Any text, and often one of what the form itself consists of.
texts = st.lists(
    st.text(max_size=5)
    | st.sampled_from(["\n", "\r", "\r\n", "\0", "\\", "\u2028", "\ufeff", "## Вы\n\n", "## Модель", "```\n", *MARKS]),
    max_size=6,
).map("".join)
odd_reasons = st.sampled_from(["stop", "length", "cancelled", "", "tool-calls", "-->", " ", "%20", "a\nb"])
reasons = st.none() | odd_reasons | texts


def said(role: str, content: str, finish_reason: str | None = None) -> Message:
    message: Message = {"role": role, "content": content}
    if finish_reason is not None:
        message["finish_reason"] = finish_reason
    return message


def talks(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Transcript]:
    """Whole pairs of these texts."""
    pairs = st.tuples(st.builds(said, st.just("user"), texts), st.builds(said, st.just("assistant"), texts, reasons))
    messages = st.lists(pairs, min_size=1, max_size=3).map(lambda some: list(chain.from_iterable(some)))
    return st.builds(Transcript, st.none() | texts, messages)


TALK = Transcript("Ты — ёж.", [said("user", "раз"), said("assistant", "два", "stop")])


def loaded(path: Path, data: str | bytes) -> Transcript:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return load(path)


def refusal(path: Path) -> str:
    """What is said of a file that cannot be written or is no talk."""
    with pytest.raises(TranscriptError) as caught:
        load(path)
    message = str(caught.value)
    assert message.endswith(".")
    return message


# --- there and back ---


@pytest.mark.parametrize("name", ["talk.md", "talk.json"])
@settings(deadline=None)
@given(talk=talks(texts))
def test_a_talk_is_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, name: str, talk: Transcript) -> None:
    path = tmp_path_factory.getbasetemp() / name
    save(talk, path)
    assert load(path) == talk


@pytest.mark.parametrize("name", ["talk.md", "talk.json"])
@pytest.mark.parametrize("system_prompt", [None, "", "Ты — ёж."])
def test_no_prompt_and_an_empty_one_are_two_things(tmp_path: Path, name: str, system_prompt: str | None) -> None:
    save(Transcript(system_prompt, TALK.messages), tmp_path / name)
    assert load(tmp_path / name).system_prompt == system_prompt


@pytest.mark.parametrize("name", ["talk.md", "talk.json"])
def test_a_finish_reason_that_is_none_is_read_back_as_none_at_all(tmp_path: Path, name: str) -> None:
    unfinished: Message = {"role": "assistant", "content": "два", "finish_reason": None}
    save(Transcript(None, [said("user", "раз"), unfinished]), tmp_path / name)
    assert load(tmp_path / name).messages[1] == said("assistant", "два")


def test_markdown_is_for_people() -> None:
    assert to_markdown(TALK) == (
        "<!-- chat system -->\n## Системный промпт\n\nТы — ёж.\n\n"
        "<!-- chat user -->\n## Вы\n\nраз\n\n"
        "<!-- chat assistant stop -->\n## Модель\n\nдва\n"
    )


def test_json_is_for_programs(tmp_path: Path) -> None:
    save(TALK, tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text()) == {
        "system_prompt": "Ты — ёж.",
        "messages": [
            {"role": "user", "content": "раз"},
            {"role": "assistant", "content": "два", "finish_reason": "stop"},
        ],
    }
    assert "раз" in (tmp_path / "talk.json").read_text(), "letters, not escapes"


# --- what others did to the file ---


@settings(deadline=None)
@given(talks(texts.map(lambda text: text.replace("\r", ""))))
def test_line_ends_of_another_system_do_not_matter(tmp_path_factory: pytest.TempPathFactory, talk: Transcript) -> None:
    path = tmp_path_factory.getbasetemp() / "crlf.md"
    text = to_markdown(talk)
    assert loaded(path, text.replace("\n", "\r\n")) == talk
    assert loaded(path, "\ufeff" + text) == talk


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["два", "", "## два", "два\n\nтри"])
def test_a_file_without_its_last_newlines_loads(tmp_path: Path, ends: str, last: str) -> None:
    talk = Transcript(None, [said("user", "раз"), said("assistant", last, "stop")])
    text = to_markdown(talk)
    for shortened in (text.removesuffix("\n"), text.rstrip("\n"), text.rstrip("\n") + "\n"):
        assert loaded(tmp_path / "talk.md", shortened.replace("\n", ends)) == talk


def test_what_stands_before_the_talk_and_changed_headings_do_not_matter(tmp_path: Path) -> None:
    text = to_markdown(TALK).replace("## Вы\n\n", "").replace("## Модель", "## Ёж")
    assert loaded(tmp_path / "talk.md", "# Заметки\n\n" + text) == TALK


def test_a_history_of_the_gateway_loads_as_it_came(tmp_path: Path) -> None:
    answer = {
        "system_prompt": "Ты — ёж.",
        "messages": [
            {"role": "user", "content": "раз", "dropped": True},
            {"role": "assistant", "content": "два", "finish_reason": "stop", "dropped": False},
        ],
        "expires_in": 600,
    }
    assert loaded(tmp_path / "talk.json", json.dumps(answer)) == TALK


@pytest.mark.parametrize("whole", [False, True])
def test_a_list_of_messages_loads_with_the_system_message_that_leads_it(tmp_path: Path, *, whole: bool) -> None:
    messages = [{"role": "system", "content": "Ты — ёж."}, *TALK.messages]
    assert loaded(tmp_path / "talk.json", json.dumps({"messages": messages} if whole else messages)) == TALK
    bare = loaded(tmp_path / "talk.json", json.dumps(TALK.messages))
    assert bare == Transcript(None, TALK.messages)


# --- refusals ---


USER, ASSISTANT, SYSTEM = said("user", "раз"), said("assistant", "два"), said("system", "Ты — ёж.")


@pytest.mark.parametrize("name", ["talk.md", "talk.json"])
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([USER], "у последнего вопроса нет ответа"),
        ([USER, ASSISTANT, USER], "у последнего вопроса нет ответа"),
        ([ASSISTANT, USER], "сообщение 1 не на месте"),
        ([USER, USER], "сообщение 2 не на месте"),
        ([USER, ASSISTANT, ASSISTANT], "сообщение 3 не на месте"),
        ([USER, SYSTEM, ASSISTANT], "сообщение 2 не на месте"),
        ([USER, ASSISTANT, SYSTEM], "сообщение 3 не на месте"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "сообщение 1 не на месте"),
    ],
)
def test_only_whole_pairs_are_a_talk(tmp_path: Path, name: str, messages: Sequence[Message], says: str) -> None:
    save(Transcript(None, messages), tmp_path / name)
    message = refusal(tmp_path / name)
    assert str(tmp_path / name) in message
    assert says in message


def test_a_talk_has_one_system_prompt(tmp_path: Path) -> None:
    told = {"system_prompt": "", "messages": [SYSTEM, USER, ASSISTANT]}
    (tmp_path / "talk.json").write_text(json.dumps(told))
    assert "сообщение 1 не на месте" in refusal(tmp_path / "talk.json")


@pytest.mark.parametrize(
    "told",
    [
        None,
        5,
        "talk",
        {},
        {"messages": None},
        {"messages": {"role": "user", "content": "раз"}},
        {"messages": [USER, ASSISTANT], "system_prompt": 5},
        ["раз", "два"],
        [USER, {"role": "assistant"}],
        [USER, {"role": "assistant", "content": None}],
        [USER, {"role": "assistant", "content": [{"type": "text", "text": "два"}]}],
        [{"role": 5, "content": "раз"}, ASSISTANT],
        [said("user", "\ud800"), ASSISTANT],
        [USER, said("assistant", "два", "\ud800")],
        {"messages": [], "system_prompt": "\udfff"},
    ],
)
def test_other_json_is_no_talk(tmp_path: Path, told: Any) -> None:
    (tmp_path / "talk.json").write_text(json.dumps(told))
    assert refusal(tmp_path / "talk.json") == f"{tmp_path / 'talk.json'}: это не разговор, сохранённый командой /save."


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("talk.json", b"", "это не разговор"),
        ("talk.json", b"{", "это не разговор"),
        ("talk.json", b"[" * 100_000, "это не разговор"),
        ("talk.json", b"9" * 5000, "это не разговор"),
        ("talk.md", b"", "это не разговор"),
        ("talk.md", "# Заметки\n\nраз\n".encode(), "это не разговор"),
        ("talk.md", " <!-- chat user -->\nраз\n".encode(), "это не разговор"),
        ("talk.md", "\\<!-- chat user -->\nраз\n".encode(), "это не разговор"),
        ("talk.md", b"<!-- chat user -->\n\xff\n", "это не текст в UTF-8"),
        ("talk.json", to_markdown(TALK).encode("utf-16"), "это не текст в UTF-8"),
        ("talk.txt", b"", "должно кончаться на .md или .json"),
        ("talk", b"", "должно кончаться на .md или .json"),
        (".md", b"", "должно кончаться на .md или .json"),
    ],
)
def test_another_file_is_no_talk(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert says in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["talk.md", "talk.json"])
@settings(deadline=None)
@given(data=st.binary(max_size=50) | texts.map(str.encode))
def test_any_file_is_a_talk_or_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"any-{name}"
    path.write_bytes(data)
    with suppress(TranscriptError):
        assert len(load(path).messages) % 2 == 0


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    assert refusal(tmp_path / "absent.md") == f"{tmp_path / 'absent.md'} не читается: нет такого файла или папки."
    assert refusal(tmp_path / "folder.md") == f"{tmp_path / 'folder.md'} не читается: это папка."
    assert "слишком длинное имя" in refusal(tmp_path / f"{'x' * 300}.json")
    assert "такого имени у файла быть не может" in refusal(tmp_path / "a\0b.md")


# --- whole or not at all ---


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "name",
    ["ёж 'и \"уж\\ $(id) *?\n\t.md", "-rf.md", "..md.json", "х" * 126 + ".md", "x" * 250 + ".json", "\udcff.md"],
)
def test_a_file_may_have_any_name_that_the_system_allows(tmp_path: Path, name: str) -> None:
    for messages in ([said("user", "раз"), said("assistant", "прежний, длиннее")], TALK.messages):
        save(Transcript("Ты — ёж.", messages), tmp_path / name)
    assert load(tmp_path / name) == TALK
    assert names_in(tmp_path) == [name]


def test_a_file_has_the_rights_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save(TALK, tmp_path / "talk.md")
    assert (tmp_path / "talk.md").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(("name", "begins"), [("TALK.MD", "<!-- chat"), ("Talk.Json", "{")])
def test_the_case_of_letters_in_a_name_does_not_matter(tmp_path: Path, name: str, begins: str) -> None:
    save(TALK, tmp_path / name)
    assert (tmp_path / name).read_text().startswith(begins)
    assert load(tmp_path / name) == TALK


def test_a_file_can_be_saved_in_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(TALK, Path("talk.md"))
    assert names_in(tmp_path) == ["talk.md"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder.md", "не записывается: это папка"),
        ("absent/talk.md", "не записывается: нет такого файла или папки"),
        ("file/talk.md", "не записывается: на пути к нему не папка"),
        ("x" * 253 + ".md", "не записывается: слишком длинное имя"),
        ("a\0b.md", "не записывается: такого имени у файла быть не может"),
        ("talk.txt", "должно кончаться на .md или .json"),
        ("talk", "должно кончаться на .md или .json"),
    ],
)
def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.md" / "in it").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(TranscriptError) as caught:
        save(TALK, tmp_path / name)
    assert says in str(caught.value)
    assert names_in(tmp_path) == ["file", "folder.md"]


def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    save(TALK, tmp_path / "talk.md")
    program = """if True:
        import resource, sys
        from pathlib import Path
        from client.transcript import Transcript, save
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        save(Transcript("x" * 5000, []), Path(sys.argv[1]))
    """
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "talk.md"],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert f"TranscriptError: {tmp_path / 'talk.md'} не записывается: " in result.stderr
    assert load(tmp_path / "talk.md") == TALK
    assert names_in(tmp_path) == ["talk.md"]
