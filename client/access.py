"""The way into a session and back into it: the key, the model that loads, the session that has expired."""

import time
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console

from client.api import GatewayProblem
from client.console import error, note, waiting
from client.conversation import Conversation
from client.prompt import Prompt, confirm
from client.words import pairs

T = TypeVar("T")

_MODEL_POLL_SECONDS = 2.0


class Access:
    """Keeps a conversation in a session that lives, with a key that works, asking the person where it must."""

    def __init__(self, conversation: Conversation, console: Console, prompt: Prompt, key_origin: str) -> None:
        """`key_origin`: where the conversation's key comes from, in Russian."""
        self._conversation = conversation
        self._console = console
        self._prompt = prompt
        self._key_origin = key_origin if conversation.key is not None else ""

    def enter(self, *, resume: bool) -> None:
        """Open a session, or `resume` the last one of this gateway if it lives.

        Raises:
            GatewayError: there is none to be had.
            KeyboardInterrupt: the person will not wait, or has no key.
        """
        if not (resume and self._resume()):
            self._with_key(lambda: self._when_model_is_loaded(self._open))

    def in_session(self, work: Callable[[], T]) -> T:
        """Do what needs a session; one that has expired is opened anew, with its talk if the person wants."""
        try:
            if self._conversation.stale:
                self.settle()
            return work()
        except GatewayProblem as exc:
            match exc.code:
                case "invalid_key":
                    self._with_key(self._conversation.replace_key)
                case "session_not_found":
                    self._reopen()
                case _:
                    raise
            return work()

    def settle(self) -> None:
        """After a call that got no answer: end what it began, and tell what the gateway kept of it.

        Raises:
            GatewayError: that cannot be told yet.
        """
        with waiting(self._console, "Узнаю, что сохранил шлюз. Ctrl-C — не ждать"):
            kept = self._conversation.settle()
        if kept:
            note(self._console, "Вопрос и то, что успело прийти, шлюз сохранил.")

    def confirm(self, question: str, *, default: bool) -> bool:
        """Ask for a yes or no."""
        return confirm(self._prompt, self._console, question, default=default)

    def tell_left_out(self, count: int) -> None:
        """Say how many pairs of a talk the gateway did not take."""
        if count:
            note(self._console, f"Разговор больше, чем шлюз принимает сразу. Не вошло с начала: {pairs(count)}.")

    def _open(self) -> None:
        self._conversation.open(self._conversation.system_prompt, self._conversation.messages)

    def _resume(self) -> bool:
        conversation = self._conversation
        session_id = conversation.state.session(conversation.client.address)
        if session_id is None:
            note(self._console, "Продолжать нечего: открытой сессии нет. Начинаю новую.")
            return False
        try:
            conversation.resume(session_id)
        except GatewayProblem as exc:
            if exc.code != "session_not_found":
                raise
            note(self._console, "Прежняя сессия истекла. Начинаю новую.")
            return False
        note(self._console, f"Сессия продолжается: {pairs(conversation.pairs)}. Показать — /history.")
        return True

    def _reopen(self) -> None:
        conversation = self._conversation
        messages = conversation.messages
        note(self._console, "Сессии больше нет: она истекла, или шлюз перезапущен. Открываю новую.")
        if messages and not self.confirm(f"Продолжить прежний разговор ({pairs(conversation.pairs)})?", default=True):
            messages = []
        self._with_key(lambda: self.tell_left_out(conversation.open_newest(conversation.system_prompt, messages)))

    def _with_key(self, work: Callable[[], None]) -> None:
        """Do what needs a key, asking for one until vLLM accepts it."""
        conversation = self._conversation
        if conversation.key is None:
            conversation.key = self._prompt.secret("Ключ vLLM")
        while True:
            try:
                work()
            except GatewayProblem as exc:
                if exc.code != "invalid_key":
                    raise
                origin = f" ({self._key_origin})" if self._key_origin else ""
                error(self._console, f"vLLM не принимает этот ключ{origin}.")
                self._key_origin = ""
                conversation.key = self._prompt.secret("Ключ, с которым запущен vLLM")
            else:
                return

    def _when_model_is_loaded(self, work: Callable[[], None]) -> None:
        """Do what needs vLLM, waiting while it loads the model."""
        try:
            work()
        except GatewayProblem as exc:
            if exc.code != "upstream_unavailable":
                raise
            note(self._console, str(exc))
            with waiting(self._console, "Жду, пока vLLM загрузит модель. Ctrl-C — выйти"):
                while self._conversation.client.health()["vllm"] != "ok":
                    time.sleep(_MODEL_POLL_SECONDS)
            work()
