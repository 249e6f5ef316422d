"""The conversation in a terminal: a line to type into, a reply that grows, a word about what went wrong."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType

from rich.console import Console

from client.access import Access
from client.api import Delta, GatewayError, GatewayProblem, GatewayUnreachable, Reasoning
from client.commands import COMMANDS, CommandError, Commands, Mistyped, Next
from client.config import ConfigError
from client.console import error, note, warn
from client.conversation import Conversation
from client.live import reply_on
from client.prompt import LineDropped, prompt_for
from client.status import SEPARATOR, folded, notes, status
from client.transcript import TranscriptError

_CANCEL_RETRY_SECONDS = 0.2


class Terminal:
    """One conversation of one person with one gateway."""

    def __init__(self, conversation: Conversation, console: Console, key_origin: str) -> None:
        """`key_origin`: where the conversation's key comes from, in Russian."""
        self._conversation = conversation
        self._console = console
        completions = {name: command.completes for name, command in COMMANDS.items()}
        self._prompt = prompt_for(console, conversation.state.history_file(), completions, self._status)
        self._access = Access(conversation, console, self._prompt, key_origin)
        self._commands = Commands(conversation, console, self._access)
        self._next = Next()

    def run(self, *, resume: bool, system_prompt: str | None, keep: bool) -> None:
        """Talk until the person leaves.

        Args:
            resume: go on with the last session of this gateway, if it lives.
            system_prompt: what a resumed session is to have; None leaves it.
            keep: leave the session open at the end.

        Raises:
            GatewayError: no session could be opened.
            KeyboardInterrupt: the person left before there was one.
        """
        conversation = self._conversation
        health = conversation.client.health()
        for warning in health["warnings"]:
            warn(self._console, warning)
        self._access.enter(resume=resume)
        note(self._console, f"Модель {health['model']}. Справка — /help, выход — Ctrl-D.")
        if resume and system_prompt is not None:
            conversation.set_system_prompt(system_prompt)
        while not self._next.leaves:
            self._step()
        if self._next.keeps or keep:
            note(self._console, "Сессия не закрыта: её продолжит --continue с тем же адресом.")
            return
        try:
            conversation.stop()
        except (GatewayError, KeyboardInterrupt):
            note(self._console, "Шлюз не ответил; сессия закроется сама, когда истечёт.")
        else:
            note(self._console, "Сессия закрыта.")

    def _step(self) -> None:
        """Go on with `_next`, and set what follows."""
        asked, self._next = self._next, Next()
        try:
            self._go_on(asked)
        except KeyboardInterrupt:
            note(self._console, "Прервано.")
        except (CommandError, ConfigError, TranscriptError, GatewayError) as exc:
            error(self._console, f"{exc}{_advice(exc)}")

    def _go_on(self, asked: Next) -> None:
        if asked.message is not None:
            self._turn(asked.message, replaces=asked.replaces)
            return
        if asked.replaces:
            note(self._console, "Прежние вопрос и ответ остаются, пока не отправите этот; Ctrl-C — передумать.")
        try:
            line = self._prompt.ask(asked.draft)
        except EOFError:
            self._next = Next(leaves=True)
            return
        except LineDropped:
            return
        except KeyboardInterrupt:
            note(self._console, "Выйти — Ctrl-D.")
            return
        if line.startswith("/"):
            self._command(line)
        elif line.strip():
            self._turn(line, replaces=asked.replaces)

    def _command(self, line: str) -> None:
        try:
            self._next = self._commands.run(line)
        except (Mistyped, ConfigError, TranscriptError, GatewayUnreachable):
            self._next = Next(draft=line)
            raise

    def _turn(self, message: str, *, replaces: bool) -> None:
        """Say something; what could not be said is the draft of the next line."""
        conversation = self._conversation
        commits = conversation.commits
        self._next = Next(draft=message, replaces=replaces)
        self._console.print()

        def say() -> None:
            nonlocal commits
            if conversation.commits > commits:  # an earlier question had come through, when its answer did not
                if conversation.messages[-2]["content"] == message:
                    return
                commits = conversation.commits
            self._reply(message)

        def say_instead() -> None:
            nonlocal commits
            commits = conversation.commits
            with conversation.instead_of_last_pair() as left_out:
                self._access.tell_left_out(left_out)
                self._reply(message)

        try:
            self._access.in_session(say_instead if replaces and conversation.messages else say)
        except GatewayProblem as exc:
            if exc.code != "cancelled":
                raise
            note(self._console, "Остановлено.")
        finally:
            if conversation.commits > commits:
                self._next = Next()
        self._console.print()

    def _reply(self, message: str) -> None:
        """Say something. Where no answer comes, the turn is settled as far as possible."""
        try:
            self._show_reply(message)
        except KeyboardInterrupt:
            note(self._console, "Связь оборвана; шлюз остановит ответ сам.")
        except GatewayUnreachable as exc:
            error(self._console, str(exc))
        else:
            return
        with suppress(GatewayError, KeyboardInterrupt):
            self._access.settle()

    def _show_reply(self, message: str) -> None:
        ended = threading.Event()
        with reply_on(self._console, "Ctrl-C — остановить") as reply:

            def stop() -> None:
                reply.hint("останавливаю; ещё раз Ctrl-C — оборвать связь")
                self._cancel(ended)

            with _on_interrupt(stop), closing(self._conversation.stream(message)) as events:
                try:
                    for event in events:
                        match event:
                            case Reasoning(text):
                                reply.think(text)
                            case Delta(text):
                                reply.say(text)
                finally:
                    ended.set()
        for line in notes(self._conversation.turns[-1], "/set max_tokens ЧИСЛО, затем /regenerate"):
            note(self._console, line)
        if self._console.is_dumb_terminal:
            note(self._console, f"[{SEPARATOR.join(status(self._conversation))}]")

    def _cancel(self, ended: threading.Event) -> None:
        """Stop the reply; again and again, because the request itself may still be on its way to the gateway."""
        with suppress(GatewayError):
            while not ended.is_set() and not self._conversation.cancel():
                ended.wait(_CANCEL_RETRY_SECONDS)

    def _status(self) -> str:
        return "\n".join(folded(status(self._conversation), self._console.width))


def _advice(exc: Exception) -> str:
    match exc:
        case GatewayProblem(problem={"field": str(field)}) if field.startswith("extra."):
            return f" Убрать: /set {field.removeprefix('extra.')} null."
    return ""


@contextmanager
def _on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `stop` beside what runs, and waits for it; a second one raises KeyboardInterrupt.

    It is waited for so that it stops nothing that comes after.
    """
    stopping: threading.Thread | None = None

    def handle(_signum: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping is not None:
            raise KeyboardInterrupt
        stopping = threading.Thread(target=stop, daemon=True)
        stopping.start()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        try:
            yield
        except GatewayError:
            if stopping is not None:
                stopping.join()
            raise
        if stopping is not None:
            stopping.join()
    finally:
        signal.signal(signal.SIGINT, previous)
