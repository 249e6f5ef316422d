"""What the client keeps between its runs: for its owner only, and never at the price of the talk."""

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.state import State

URL, OTHER = "http://127.0.0.1:8080", "http://gpu.example:8443"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "simple-chat-gateway"


@pytest.fixture
def any_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("any_umask")
def test_only_the_owner_can_read_what_is_kept(folder: Path) -> None:
    state = State(folder)
    assert state.history_file() == folder / "history"
    state.remember(URL, "s-1")
    state.remember(URL, "s-2")
    assert rights(folder) == 0o700
    assert rights(folder / "history") == rights(folder / "sessions.json") == 0o600


@pytest.mark.usefixtures("any_umask")
def test_the_folder_is_made_for_a_session_too(folder: Path) -> None:
    State(folder).remember(URL, "s-1")
    assert rights(folder) == 0o700


def test_what_was_typed_before_stays(folder: Path) -> None:
    state = State(folder)
    state.history_file()
    (folder / "history").write_text("+раз\n")
    assert state.history_file() == folder / "history"
    assert (folder / "history").read_text() == "+раз\n"


def test_a_session_is_remembered_for_its_gateway(folder: Path) -> None:
    state = State(folder)
    assert state.session(URL) is None
    state.remember(URL, "s-1")
    state.remember(OTHER, "s-2")
    assert (state.session(URL), state.session(OTHER)) == ("s-1", "s-2")
    state.remember(URL, "s-3")
    again = State(folder)
    assert (again.session(URL), again.session(OTHER)) == ("s-3", "s-2")
    assert sorted(path.name for path in folder.iterdir()) == ["sessions.json"]


def test_only_the_session_that_is_over_is_forgotten(folder: Path) -> None:
    state = State(folder)
    state.forget(URL, "s-1")
    assert not folder.exists()
    state.remember(URL, "s-1")
    state.remember(OTHER, "s-1")
    state.forget(URL, "of another window")
    assert state.session(URL) == "s-1"
    state.forget(URL, "s-1")
    assert (state.session(URL), state.session(OTHER)) == (None, "s-1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b'"s"',
        b"[" * 100_000,
        b"9" * 5000,
        b'{"http://127.0.0.1:8080": 5}',
        b'{"http://127.0.0.1:8080": null}',
        b'{"http://127.0.0.1:8080": ["s"]}',
    ],
)
def test_a_damaged_file_holds_nothing_and_is_replaced(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "sessions.json").write_bytes(content)
    state = State(folder)
    assert state.session(URL) is None
    state.forget(URL, "s-1")
    state.remember(URL, "s-1")
    assert state.session(URL) == "s-1"


def test_what_is_damaged_takes_nothing_else_with_it(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "sessions.json").write_text(json.dumps({URL: 5, OTHER: "s-2"}))
    assert State(folder).session(OTHER) == "s-2"


@pytest.mark.parametrize("hindrance", ["a file in place of the folder", "a file on the way to it", "no such name"])
def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path: Path, hindrance: str) -> None:
    (tmp_path / "file").touch()
    name = {"a file in place of the folder": "file", "a file on the way to it": "file/state"}.get(hindrance, "x" * 300)
    state = State(tmp_path / name)
    assert state.history_file() is None
    state.remember(URL, "s-1")
    assert state.session(URL) is None
    state.forget(URL, "s-1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_in_place_of_files_are_left_alone(folder: Path) -> None:
    (folder / "history").mkdir(parents=True)
    (folder / "sessions.json" / "in it").mkdir(parents=True)
    state = State(folder)
    assert state.history_file() is None
    state.remember(URL, "s-1")
    assert state.session(URL) is None
    assert sorted(path.name for path in folder.iterdir()) == ["history", "sessions.json"]


def test_writers_at_the_same_time_do_not_damage_the_file(folder: Path) -> None:
    def work(number: int) -> None:
        for turn in range(30):
            State(folder).remember(f"http://{number}", f"{turn}" * 500)
            State(folder).forget(f"http://{number}", f"{turn}" * 500)

    State(folder).remember(URL, "s-1")
    writers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert json.loads((folder / "sessions.json").read_text())[URL] == "s-1"
    assert State(folder).session(URL) == "s-1"
    assert [path.name for path in folder.iterdir()] == ["sessions.json"]


def test_the_folder_is_where_a_user_keeps_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert State.of_user({}).history_file() == tmp_path / ".local/state/simple-chat-gateway/history"
    environ = {"XDG_STATE_HOME": str(tmp_path / "xdg")}
    assert State.of_user(environ).history_file() == tmp_path / "xdg/simple-chat-gateway/history"


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "~")
    state = State.of_user({})
    assert state.history_file() is None
    state.remember(URL, "s-1")
    assert state.session(URL) is None
