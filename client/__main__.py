"""`python -m client`: what is asked for, and with which exit code it ends."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType

try:
    import httpx2  # noqa: F401
    import prompt_toolkit  # noqa: F401
    import rich  # noqa: F401
except ModuleNotFoundError as missing:
    print(
        f"Ошибка: нет библиотеки {missing.name}. Поставьте: pip install -r client/requirements.txt — или возьмите "
        "python из окружения, где она есть: .venv/bin/python -m client",
        file=sys.stderr,
    )
    sys.exit(2)

from client.api import GatewayClient, GatewayError, GatewayProblem
from client.arguments import parse
from client.config import Config, ConfigError, load, with_option
from client.console import make_console
from client.conversation import Conversation
from client.script import answer_one
from client.state import State
from client.terminal import Terminal
from client.words import why

OK = 0
NOT_WRITTEN = 1
WRONG_USE = 2
UNREACHABLE = 3
WRONG_KEY = 4
REFUSED = 5
FAILED = 6
INTERRUPTED = 130
BROKEN_PIPE = 141

_NO_KEY = "Задайте ключ vLLM в VLLM_API_KEY, в --key-file или в client/chat.json."
_NO_SESSION = "Продолжать нечего: сессия закрыта или истекла. Без --continue откроется новая."


def main() -> int:
    """Returns the exit code."""
    if sys.stdout is None:
        return WRONG_USE  # there is no place to say why
    _prepare()
    try:
        return _main(parse(sys.argv[1:]))
    except ConfigError as exc:
        return _fail(str(exc), WRONG_USE)
    except GatewayError as exc:
        lost = isinstance(exc, GatewayProblem) and exc.code == "session_not_found"
        return _fail(_NO_SESSION if lost else str(exc), _code_of(exc))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return BROKEN_PIPE if isinstance(exc, BrokenPipeError) else _fail(f"Вывод не пишется: {why(exc)}.", NOT_WRITTEN)


def _prepare() -> None:
    """Make of the streams and signals that a caller has given what the rest can rely on."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as the process lives
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that does not know a letter
    if sys.platform != "win32":
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(signum, _end)


def _end(signum: int, _frame: FrameType | None) -> None:
    """End as after an exception, so that what was begun is ended too."""
    sys.exit(128 + signum)


def _main(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    has_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    talks = has_terminal and not arguments.question
    if talks and arguments.json:
        raise ConfigError("С --json нужен вопрос: параметром или на стандартном входе.")
    with GatewayClient(config.url) as client:
        conversation = Conversation(client, State.of_user(), config.key, config.system_prompt, dict(config.options))
        if talks:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have had ignored
            terminal = Terminal(conversation, make_console(), config.key_origin)
            terminal.run(resume=arguments.resume, system_prompt=arguments.system, keep=arguments.keep)
        else:
            _script(conversation, arguments, config.key_origin)
    return OK


def _config(arguments: argparse.Namespace) -> Config:
    flags = {
        "url": arguments.url,
        "key_file": arguments.key_file,
        "system_prompt": arguments.system,
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
    }
    config = load(arguments.config, flags)
    options = config.options
    for name, value in arguments.set:
        options = with_option(options, name, value)
    return replace(config, options=options)


def _script(conversation: Conversation, arguments: argparse.Namespace, key_origin: str) -> None:
    message = _message(arguments.question)
    if arguments.resume:
        conversation.session_id = conversation.state.session(conversation.client.address) or ""
        if arguments.system is not None:
            conversation.set_system_prompt(arguments.system)
    elif conversation.key is None:
        raise ConfigError(f"Нет ключа{f': {key_origin}' if key_origin else ''}. {_NO_KEY}")
    else:
        conversation.open(conversation.system_prompt, [])
    answered = False
    try:
        _answer(conversation, message, arguments)
        answered = True
    finally:
        # What is to be gone on with is not lost by an error.
        if not arguments.keep and (answered or not arguments.resume):
            with suppress(GatewayError):
                conversation.stop()


def _answer(conversation: Conversation, message: str, arguments: argparse.Namespace) -> None:
    console = make_console()
    try:
        answer_one(conversation, message, console, as_json=arguments.json)
    except GatewayProblem as exc:
        if exc.code != "invalid_key" or not arguments.resume or conversation.key is None:
            raise
        conversation.replace_key()  # the session was opened with another one
        answer_one(conversation, message, console, as_json=arguments.json)


def _message(question: Sequence[str]) -> str:
    """The question, and after it what comes from a file or a pipe."""
    told = "" if sys.stdin is None or (question and sys.stdin.isatty()) else _standard_input()
    message = "\n\n".join(filter(None, [" ".join(question), told]))
    if not message:
        raise ConfigError("Вопрос пуст: напишите его параметром или подайте на стандартный вход.")
    return message


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("Напишите вопрос; в конце — Ctrl-D.", file=sys.stderr)
    try:
        return (sys.stdin.buffer.read() or b"").decode().removesuffix("\n")
    except UnicodeDecodeError as exc:
        raise ConfigError("На стандартном входе не текст в UTF-8.") from exc
    except OSError as exc:
        raise ConfigError(f"Стандартный вход не читается: {why(exc)}.") from exc


def _code_of(exc: GatewayError) -> int:
    match exc:
        case GatewayProblem(code="invalid_key"):
            return WRONG_KEY
        case GatewayProblem(status=status):
            return FAILED if status in {408, 429} or status >= 500 else REFUSED
    return UNREACHABLE


def _fail(message: str, code: int) -> int:
    print(f"Ошибка: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
