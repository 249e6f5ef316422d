"""The command line of `python -m client`, in Russian throughout."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from client.config import FIELDS, ConfigError, with_option
from client.words import as_text

DESCRIPTION = """\
Разговор с моделью через Simple Chat Gateway. Без вопроса, в терминале,
открывает разговор: /help в нём покажет команды. С вопросом или с текстом на
стандартном входе печатает только ответ.
"""
EPILOG = """\
настройки: параметры важнее переменных окружения, а те важнее файла. Файл —
первый из client/chat.json и ~/.config/simple-chat-gateway/chat.json; образец —
client/chat.example.json.

переменные окружения:
  VLLM_API_KEY       ключ vLLM; нет нигде — в терминале клиент спросит его
  CHAT_GATEWAY_URL   адрес шлюза
  NO_COLOR           без цвета

коды возврата:
  0    ответ получен, разговор окончен
  1    ответ некуда записать
  2    неверные параметры или настройки, нет ключа, вопрос пуст
  3    нет связи со шлюзом
  4    vLLM не принимает ключ
  5    шлюз отклонил запрос, или продолжать нечего: повторять бесполезно
  6    vLLM или шлюз не смогли ответить: можно повторить позже
  130  прервано (Ctrl-C), ключ не введён; 129 и 143 — сигналами SIGHUP и SIGTERM
  141  тот, кому шёл ответ, закрыл канал

примеры:
  python -m client
  python -m client --url http://192.168.0.5:8080 --system "Отвечай стихами"
  python -m client "Чем TCP отличается от UDP?"
  git diff | python -m client "Что здесь изменилось?"
  python -m client --json --temperature 0 "Столица Франции?" | jq -r .reply
  python -m client --keep "Придумай имя ежу"
  python -m client --continue "А покороче?"

в цикле оболочки дайте клиенту свой вход: python -m client "$line" < /dev/null
"""
_ENGLISH = {
    r"unrecognized arguments: (.*)": r"неизвестные параметры: \1. Вопрос, который начинается с «-», ставьте после --",
    r"argument (\S+): expected one argument": r"у \1 должно быть значение",
    r"argument (\S+): ignored explicit argument .*": r"у \1 не бывает значения",
    r"argument ([^:]+): (.*)": r"\1: \2",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says in Russian what argparse says in English, and ends the program with 2."""
        message = " ".join(message.split())  # it repeats what was typed, in one line
        for english, russian in _ENGLISH.items():
            if found := re.fullmatch(english, message):
                message = found.expand(russian)
                break
        self.exit(2, f"Ошибка: {message}. Справка: python -m client --help\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None = None
    ) -> None:
        super().add_usage(usage, actions, groups, "использование: " if prefix is None else prefix)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; ends the program with 0 after --help and with 2 after an error."""
    parser = _Parser(
        prog="python -m client",
        usage="python -m client [параметры] [ВОПРОС …]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("параметры")
    group.add_argument("question", nargs="*", type=as_text, metavar="ВОПРОС", help="что спросить; ответ — и конец")
    group.add_argument("-h", "--help", action="help", help="показать эту справку")
    group.add_argument("--config", type=Path, metavar="ФАЙЛ", help="файл настроек")
    group.add_argument("--url", type=as_text, metavar="АДРЕС", help="адрес шлюза, обычно http://127.0.0.1:8080")
    group.add_argument("--key-file", type=Path, metavar="ФАЙЛ", help="файл с ключом vLLM")
    group.add_argument("--system", type=as_text, metavar="ТЕКСТ", help="системный промпт; пустой — без него")
    group.add_argument("--max-tokens", type=_max_tokens, metavar="N", help="наибольшее число токенов ответа")
    group.add_argument("--temperature", type=_temperature, metavar="T", help="от 0 до 2; без неё решает модель")
    group.add_argument(
        "--set", action="append", type=_pair, default=[], metavar="ИМЯ=ЗНАЧЕНИЕ", help="параметр vLLM: top_p=0.9"
    )
    group.add_argument("--json", action="store_true", help="напечатать весь ответ шлюза в JSON")
    group.add_argument("--keep", action="store_true", help="не закрывать сессию на выходе")
    group.add_argument(
        "--continue", action="store_true", dest="resume", help="продолжить незакрытую сессию, если она ещё жива"
    )
    return parser.parse_args(argv)


def _max_tokens(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if FIELDS["max_tokens"].accepts(value):
        return value
    raise argparse.ArgumentTypeError(f"нужно {FIELDS['max_tokens'].allowed}")


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if FIELDS["temperature"].accepts(value):
        return value
    raise argparse.ArgumentTypeError(f"нужно {FIELDS['temperature'].allowed}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = as_text(text).partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("нужно ИМЯ=ЗНАЧЕНИЕ")
    try:
        with_option({}, name, value)
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc).rstrip(".")) from exc
    return name, value
