"""The conversation in a terminal: a prompt, a streamed reply, a line about its cost."""

import readline  # noqa: F401 - gives `input` line editing and history
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rich.console import Console

from client.api import Answer, Delta, Done, GatewayClient, GatewayError, GatewayProblem, Reasoning

PROMPT = "Вы> "
_CANCEL_RETRY_SECONDS = 0.2
# A model's text must not steer the terminal: every control character but these becomes a visible sign.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class Terminal:
    """One conversation of one person with one gateway."""

    def __init__(
        self, client: GatewayClient, console: Console, key: str, system_prompt: str | None, options: dict[str, Any]
    ) -> None:
        """`options`: what every `/chat` is sent beside the message."""
        self._client = client
        self._console = console
        self._key = key
        self._system_prompt = system_prompt
        self._options = options
        self._session_id = ""

    def run(self) -> None:
        """Talk until Ctrl-D.

        Raises:
            GatewayError: the session could not be opened.
        """
        health = self._client.health()
        self._open_session()
        self._note(f"Модель {health['model']}. Ctrl-C — остановить ответ, Ctrl-D — выйти.")
        for warning in health["warnings"]:
            self._console.print(f"Внимание: {warning}", style="yellow", markup=False, highlight=False)
        try:
            for message in self._messages():
                self._turn(message)
        finally:
            with suppress(GatewayError):
                self._client.stop_session(self._session_id)
        self._note("Сессия закрыта.")

    def _open_session(self) -> None:
        self._session_id = self._client.init_session(self._key, self._system_prompt)["session_id"]

    def _messages(self) -> Iterator[str]:
        while True:
            try:
                line = input(PROMPT)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                self._note("Выйти — Ctrl-D.")
                continue
            if line.strip():
                yield as_text(line)

    def _turn(self, message: str) -> None:
        try:
            self._reply(message)
        except GatewayProblem as exc:
            if exc.code == "session_not_found":
                self._reopen(message)
            elif exc.code == "cancelled":
                self._note("Остановлено.")
            else:
                self._error(exc)
        except GatewayError as exc:
            self._error(exc)

    def _reopen(self, message: str) -> None:
        self._note("Сессия истекла; открываю новую, прежний разговор она не помнит.")
        try:
            self._open_session()
            self._reply(message)
        except GatewayError as exc:
            self._error(exc)

    def _reply(self, message: str) -> None:
        started = time.monotonic()
        ended = threading.Event()
        thinking = False
        with _on_interrupt(lambda: self._cancel(ended)):
            try:
                for event in self._client.stream(self._session_id, message, **self._options):
                    match event:
                        case Reasoning(text):
                            thinking = True
                            self._write(text, style="dim italic")
                        case Delta(text):
                            self._write(f"\n\n{text}" if thinking else text)
                            thinking = False
                        case Done(answer):
                            self._console.print()
                            self._note(_summary(answer, time.monotonic() - started))
            finally:
                ended.set()

    def _cancel(self, ended: threading.Event) -> None:
        """Stop the reply; again and again, because the request itself may still be on its way to the gateway."""
        with suppress(GatewayError):
            while not ended.is_set() and not self._client.cancel(self._session_id):
                ended.wait(_CANCEL_RETRY_SECONDS)

    def _write(self, text: str, style: str | None = None) -> None:
        text = text.translate(_CONTROLS)
        self._console.print(text, end="", style=style, markup=False, highlight=False, soft_wrap=True, emoji=False)

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)

    def _error(self, error: GatewayError) -> None:
        self._console.print(f"\nОшибка: {error}", style="red", markup=False, highlight=False)


def as_text(raw: str) -> str:
    """What a terminal gave, with a sign for every byte that is no text."""
    return raw.encode(errors="replace").decode()


def _summary(answer: Answer, seconds: float) -> str:
    context = answer["context"]
    parts = [f"контекст {context['used']} из {context['limit']} ток."]
    if context["dropped_pairs"]:
        parts.append(f"не вошло пар: {context['dropped_pairs']}")
    if answer["output_tokens"] is not None:
        parts.append(f"ответ {answer['output_tokens']} ток. за {seconds:.1f} с")
    match answer["finish_reason"]:
        case "cancelled":
            parts.append("остановлено")
        case "length":
            parts.append("обрезано по max_tokens")
    return f"[{' · '.join(parts)}]"


@contextmanager
def _on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """While a reply runs, the first Ctrl-C calls `stop` beside it; a second one breaks the reply off."""
    interrupted = False

    def handle(_signum: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        threading.Thread(target=stop, daemon=True).start()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except KeyboardInterrupt:
        print("\nСоединение оборвано: шлюз остановит ответ и сохранит то, что успело прийти.")
    finally:
        signal.signal(signal.SIGINT, previous)
