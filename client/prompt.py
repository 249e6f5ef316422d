"""The line that a person types into: editing, history, completion, a status line under it."""

import getpass
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import DummyHistory, FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.styles import Style
from rich.console import Console

from client.live import printable
from client.words import as_text

PROMPT = "Вы> "
CONTINUATION = "  > "
_YES = ("д", "да", "y", "yes")
_NO = ("н", "нет", "n", "no")
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse", "bottom-toolbar.text": "ansibrightblack"})


class LineDropped(KeyboardInterrupt):
    """Ctrl-C in a line that had something in it."""


class Prompt(Protocol):
    """Asks a person at a terminal. Ctrl-C is a KeyboardInterrupt everywhere."""

    def ask(self, draft: str = "") -> str:
        """A message or a command, as it was typed; `draft` is what the line begins with. Ctrl-D raises EOFError."""

    def secret(self, question: str) -> str:
        """A key, typed unseen."""

    def line(self, question: str) -> str:
        """An answer to a question."""


def prompt_for(
    console: Console,
    history_file: Path | None,
    completions: Mapping[str, Iterable[str] | None],
    status: Callable[[], str],
) -> Prompt:
    """A prompt that the terminal can show.

    Args:
        console: tells what it can.
        history_file: where typed lines are kept; None keeps them while the program runs.
        completions: commands, and what can follow them; None: the name of a file.
        status: the text under the line, asked for every second.
    """
    return PlainPrompt() if console.is_dumb_terminal else LinePrompt(history_file, completions, status)


def confirm(prompt: Prompt, console: Console, question: str, *, default: bool) -> bool:
    """Yes or no; the question may be of any length."""
    console.print(printable(question), markup=False, highlight=False, emoji=False)
    while True:
        answer = prompt.line("[Д/н] " if default else "[д/Н] ").strip().lower()
        if not answer:
            return default
        if answer in _YES or answer in _NO:
            return answer in _YES
        console.print("Ответьте д (да) или н (нет).", style="dim")


@contextmanager
def _ctrl_d_interrupts() -> Iterator[None]:
    """Only at the prompt for messages does Ctrl-D mean the end."""
    try:
        yield
    except EOFError:
        raise KeyboardInterrupt from None


class PlainPrompt:
    """Where the cursor cannot be moved: the terminal's own line."""

    def ask(self, draft: str = "") -> str:
        """See Prompt; the draft is sent again by an empty line."""
        if draft:
            print("(пустая строка — отправить то же)")
        try:
            return as_text(input(PROMPT)) or draft
        except EOFError:
            print()
            raise

    def secret(self, question: str) -> str:
        """See Prompt."""
        with _ctrl_d_interrupts():
            return as_text(getpass.getpass(f"{question}: ")).strip()

    def line(self, question: str) -> str:
        """See Prompt."""
        with _ctrl_d_interrupts():
            return input(question)


class LinePrompt:
    """A line with editing, history and completion, and a status line under it."""

    def __init__(
        self, history_file: Path | None, completions: Mapping[str, Iterable[str] | None], status: Callable[[], str]
    ) -> None:
        """See `prompt_for`."""
        history: History = InMemoryHistory() if history_file is None else _KeptHistory(os.fspath(history_file))
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            key_bindings=_bindings(),
            completer=_CommandCompleter(completions),
            complete_while_typing=Condition(_types_command),
            reserve_space_for_menu=6,
            prompt_continuation=CONTINUATION,
            bottom_toolbar=status,
            refresh_interval=1.0,
            style=_STYLE,
            enable_suspend=True,
            input_processors=[TabsProcessor()],
            tempfile_suffix=".md",
        )
        # Without a history: no key may come back by an arrow key.
        self._questions: PromptSession[str] = PromptSession(style=_STYLE, history=DummyHistory())

    def ask(self, draft: str = "") -> str:
        """See Prompt."""
        try:
            return as_text(self._session.prompt(PROMPT, default=draft))
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                raise LineDropped from None
            raise

    def secret(self, question: str) -> str:
        """See Prompt."""
        with _ctrl_d_interrupts():
            return as_text(self._questions.prompt(f"{question}: ", is_password=True)).strip()

    def line(self, question: str) -> str:
        """See Prompt."""
        with _ctrl_d_interrupts():
            return self._questions.prompt(question, is_password=False)


class _KeptHistory(FileHistory):
    """Lines in a file; a file that cannot be written any more loses the line, not the talk."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


class _CommandCompleter(Completer):
    """Completes commands and what follows them."""

    def __init__(self, completions: Mapping[str, Iterable[str] | None]) -> None:
        self._completions = completions
        self._talks = PathCompleter(expanduser=True, file_filter=_may_hold_talk)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """See prompt_toolkit."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, argument = text.partition(" ")
        if not space:
            yield from _starting_with(text, self._completions)
        elif command in self._completions:
            names = self._completions[command]
            if names is None:
                yield from self._talks.get_completions(Document(argument), complete_event)
            else:
                yield from _starting_with(argument, names)


def _may_hold_talk(name: str) -> bool:
    path = Path(name)
    return not path.name.startswith(".") and (path.suffix in {".md", ".json"} or path.is_dir())


def _starting_with(begun: str, words: Iterable[str]) -> Iterator[Completion]:
    return (Completion(word, start_position=-len(begun)) for word in words if word.startswith(begun))


def _types_command() -> bool:
    return get_app().current_buffer.text.startswith("/")


def _bindings() -> KeyBindings:
    """Enter sends, Alt+Enter breaks the line; what is pasted keeps its lines."""
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def _break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-x", "c-e", filter=typing)
    def _edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor(validate_and_handle=False)

    return bindings
