"""What can be typed instead of a message: /help, /undo and the rest."""

import difflib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import clipboard, transcript
from client.access import Access
from client.api import GatewayError
from client.config import with_option
from client.console import note
from client.conversation import Conversation
from client.live import printable, show
from client.status import sums
from client.transcript import Transcript
from client.words import ending_of, pairs


@dataclass(frozen=True)
class Next:
    """What the talk goes on with.

    Attributes:
        message: to be said at once.
        draft: what the next line begins with.
        replaces: what is said next takes the place of the last pair.
        leaves: the talk is over.
        keeps: the session is not.
    """

    message: str | None = None
    draft: str = ""
    replaces: bool = False
    leaves: bool = False
    keeps: bool = False


class CommandError(Exception):
    """A command cannot do what it was asked; the message is Russian."""


class Mistyped(CommandError):
    """What was typed has to be mended."""


@dataclass(frozen=True)
class _Command:
    usage: str
    does: str
    completes: tuple[str, ...] | None = ()


COMMANDS: Mapping[str, _Command] = {
    "/help": _Command("", "показать эту справку"),
    "/system": _Command("[ТЕКСТ]", 'показать системный промпт или сменить его; "" — без него'),
    "/history": _Command("", "показать весь разговор"),
    "/undo": _Command("", "убрать последние вопрос и ответ"),
    "/regenerate": _Command("", "ответить на последний вопрос заново"),
    "/edit": _Command("", "поправить последний вопрос и задать его заново"),
    "/reset": _Command("", "начать разговор сначала; системный промпт остаётся"),
    "/set": _Command(
        "[ИМЯ ЗНАЧЕНИЕ]",
        "показать параметры или задать один: max_tokens, temperature, любой параметр vLLM; null — убрать",
        ("max_tokens ", "temperature ", "top_p ", "top_k ", "repetition_penalty ", "seed ", "chat_template_kwargs "),
    ),
    "/save": _Command("ФАЙЛ", "сохранить разговор в файл .md или .json", None),
    "/load": _Command("ФАЙЛ", "продолжить сохранённый разговор в новой сессии", None),
    "/copy": _Command("", "скопировать последний ответ в буфер обмена"),
    "/stats": _Command("", "показать, сколько потрачено токенов и времени"),
    "/exit": _Command("[keep]", "выйти; keep — сессию не закрывать, её продолжит --continue", ("keep",)),
}


KEYS: Mapping[str, str] = {
    "Enter": "отправить",
    "Alt+Enter": "новая строка; вставленный текст строки сохраняет",
    "Ctrl-C": "остановить ответ, а в строке ввода — очистить её",
    "Ctrl-D": "выйти и закрыть сессию",
    "↑, Ctrl-R": "прежние сообщения, поиск по ним",
    "Ctrl-X Ctrl-E": "писать в редакторе из $EDITOR",
}
DUMB_KEYS = {"Enter", "Ctrl-C", "Ctrl-D"}


class Commands:
    """The commands of one conversation."""

    def __init__(self, conversation: Conversation, console: Console, access: Access) -> None:
        self._conversation = conversation
        self._console = console
        self._access = access
        self._run: Mapping[str, Callable[[str], Next | None]] = {
            "/help": self._help,
            "/system": self._system,
            "/history": self._history,
            "/undo": self._undo,
            "/regenerate": self._regenerate,
            "/edit": self._edit,
            "/reset": self._reset,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
            "/copy": self._copy,
            "/stats": self._stats,
            "/exit": self._exit,
        }

    def run(self, line: str) -> Next:
        """Do what a line that begins with a slash says.

        Raises:
            CommandError, ConfigError, TranscriptError: it cannot be done; nothing has changed.
            GatewayError: the gateway did not do it.
        """
        name, *rest = line.split(maxsplit=1)
        argument = rest[0].strip() if rest else ""
        if name not in self._run:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Может быть, {near[0]}?" if near else ""
            raise Mistyped(
                f"Нет команды {name[:32]}.{hint} Все команды — /help. Чтобы начать сообщение с косой черты, поставьте "
                "перед ней пробел."
            )
        if argument and not COMMANDS[name].usage:
            raise Mistyped(f"У {name} нет параметров.")
        return self._run[name](argument) or Next()

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        for name, command in COMMANDS.items():
            table.add_row(Text(f"{name} {command.usage}".strip()), command.does)
        for keys, does in KEYS.items():
            if keys in DUMB_KEYS or not self._console.is_dumb_terminal:
                table.add_row(keys, does)
        self._console.print(table, highlight=False)

    def _system(self, text: str) -> None:
        conversation = self._conversation
        if not text:
            self._access.in_session(conversation.history)
            self._note(conversation.system_prompt or "Системного промпта нет.")
            return
        system_prompt = "" if text in ('""', "''") else text
        self._access.in_session(lambda: conversation.set_system_prompt(system_prompt))
        self._note("Системный промпт сменён.")

    def _history(self, _: str) -> None:
        messages = self._access.in_session(self._conversation.history)
        if not messages:
            self._note("Разговор пуст.")
        for message in messages:
            who = {"user": "Вы", "assistant": "Модель"}[message["role"]]
            marks = ["не вошло в последний запрос"] if message["dropped"] else []
            if ending := ending_of(message):
                marks.append(ending)
            told = f"{who} ({', '.join(marks)}):" if marks else f"{who}:"
            self._console.print(told, style="bold", markup=False)
            if message["role"] == "user":
                self._console.print(printable(message["content"]), markup=False, highlight=False, emoji=False)
            else:
                show(self._console, message["content"])
            self._console.print()

    def _undo(self, _: str) -> None:
        question = self._access.in_session(self._conversation.undo)
        self._note(f"Убрано: «{_beginning(question)}» и ответ на него.")

    def _regenerate(self, _: str) -> Next:
        return Next(message=self._last_question(), replaces=True)

    def _edit(self, _: str) -> Next:
        return Next(draft=self._last_question(), replaces=True)

    def _last_question(self) -> str:
        self._access.in_session(lambda: None)  # so that it is the last one for the gateway, too
        if not self._conversation.messages:
            raise CommandError("Разговор пуст.")
        return self._conversation.messages[-2]["content"]

    def _reset(self, _: str) -> None:
        self._access.in_session(self._conversation.reset)
        self._note("Разговор начат сначала.")

    def _set(self, argument: str) -> None:
        options = self._conversation.options
        if not argument:
            self._print_options(options)
            return
        name, _, raw = argument.partition(" ")
        raw = raw.strip()
        if not raw:
            raise Mistyped(f"Какое значение у {name[:64]}? /set {name[:64]} ЗНАЧЕНИЕ; null — убрать.")
        options = self._conversation.options = with_option(options, name, raw)
        value = {**options, **options.get("extra", {})}.get(name)
        shown = "по умолчанию" if value is None else json.dumps(value, ensure_ascii=False)
        self._note(f"{name} = {shown}")

    def _print_options(self, options: Mapping[str, Any]) -> None:
        shown = {"max_tokens": "512, по умолчанию", "temperature": "решает модель"}
        shown |= {name: json.dumps(options[name]) for name in ("max_tokens", "temperature") if name in options}
        shown |= {name: json.dumps(value, ensure_ascii=False) for name, value in options.get("extra", {}).items()}
        for name, value in shown.items():
            self._note(f"{name} = {value}")

    def _save(self, name: str) -> None:
        path = _path(name, "/save")
        conversation = self._conversation
        if not conversation.messages:
            raise CommandError("Разговор пуст: сохранять нечего.")
        with suppress(OSError):  # a name that no file can have: `save` will say so
            if path.exists() and not self._access.confirm(f"Файл {path} уже есть. Заменить?", default=False):
                self._note("Не сохранено.")
                return
        if conversation.system_prompt is None:
            with suppress(GatewayError):
                conversation.history()  # tells the default one
        transcript.save(Transcript(conversation.system_prompt, conversation.messages), path)
        self._note(f"Разговор сохранён ({pairs(conversation.pairs)}): {path}")

    def _load(self, name: str) -> None:
        path = _path(name, "/load")
        loaded = transcript.load(path)
        conversation = self._conversation
        if conversation.messages and not self._access.confirm(
            f"Нынешний разговор ({pairs(conversation.pairs)}) закончится. Загрузить другой?", default=False
        ):
            self._note("Не загружено.")
            return
        system_prompt = conversation.system_prompt if loaded.system_prompt is None else loaded.system_prompt
        left_out = self._access.in_session(lambda: conversation.load(system_prompt, loaded.messages))
        self._access.tell_left_out(left_out)
        self._note(f"Разговор продолжается в новой сессии, {pairs(conversation.pairs)}. Показать: /history")

    def _copy(self, _: str) -> None:
        if not self._conversation.messages:
            raise CommandError("Разговор пуст: копировать нечего.")
        text = self._conversation.messages[-1]["content"]
        if not text:
            raise CommandError("Последний ответ пуст: копировать нечего.")
        if clipboard.copy_by_desktop(text):
            self._note("Последний ответ скопирован.")
        elif clipboard.copy_by_terminal(text, self._console):
            self._note("Последний ответ передан терминалу. Если его нет в буфере обмена, терминал этого не умеет.")
        else:
            raise CommandError("Буфера обмена здесь нет. Сохранить ответ в файл: /save.")

    def _stats(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for what, much in sums(self._conversation):
            table.add_row(what, much)
        self._console.print(table, highlight=False)

    def _exit(self, argument: str) -> Next:
        if argument not in ("", "keep"):
            raise Mistyped("/exit или /exit keep.")
        return Next(leaves=True, keeps=argument == "keep")

    def _note(self, text: str) -> None:
        note(self._console, text)


def _path(name: str, command: str) -> Path:
    if not name:
        raise Mistyped(f"Какой файл? {command} разговор.md или {command} разговор.json.")
    try:
        return Path(name).expanduser()
    except RuntimeError as exc:
        raise Mistyped(f"Не найти домашнюю папку: {name}.") from exc


def _beginning(text: str, letters: int = 40) -> str:
    """The first line of a text, shortened."""
    line = text.strip().partition("\n")[0]
    return line if line == text.strip() and len(line) <= letters else f"{line[:letters].rstrip()}…"
