"""`python -m client`: arguments and exit codes."""

import argparse
import getpass
import os
import sys
from contextlib import suppress

from rich.console import Console

from client.api import GatewayClient, GatewayError, GatewayProblem
from client.terminal import Terminal, as_text

DEFAULT_URL = "http://127.0.0.1:8080"

_WRONG_KEY = "vLLM не принимает этот ключ. Нужен тот, с которым он запущен: задайте его в VLLM_API_KEY."

EPILOG = """\
переменные окружения:
  VLLM_API_KEY       ключ vLLM; нет переменной — клиент спросит его
  CHAT_GATEWAY_URL   адрес шлюза, если нет --url

коды возврата: 0 — разговор окончен, 1 — шлюз недоступен или отказал, 2 — неверные аргументы, 130 — прервано

пример:
  VLLM_API_KEY=INTERNAL_VLLM_KEY python -m client --url http://192.168.0.5:8080 --system "Отвечай стихами"
"""


def main() -> int:
    """Returns the exit code."""
    arguments = _parse()
    options = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        key = as_text(os.environ.get("VLLM_API_KEY") or getpass.getpass("Ключ vLLM: "))
        with GatewayClient(arguments.url) as client:
            Terminal(client, Console(), key, arguments.system, options).run()
    except GatewayError as exc:
        refused = isinstance(exc, GatewayProblem) and exc.code == "invalid_key"
        print(f"Ошибка: {_WRONG_KEY if refused else exc}", file=sys.stderr)
        return 1
    except (EOFError, KeyboardInterrupt):
        print()
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m client",
        description="Разговор с моделью через Simple Chat Gateway. Ctrl-C останавливает ответ, Ctrl-D — выход.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    url = os.environ.get("CHAT_GATEWAY_URL", DEFAULT_URL)
    parser.add_argument("-h", "--help", action="help", help="показать эту справку")
    parser.add_argument("--url", default=url, help=f"адрес шлюза (сейчас {url})")
    parser.add_argument("--system", type=as_text, metavar="ТЕКСТ", help="системный промпт вместо промпта по умолчанию")
    parser.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="наибольшее число токенов ответа (по умолчанию 512)"
    )
    parser.add_argument("--temperature", type=_temperature, metavar="T", help="от 0 до 2; по умолчанию решает модель")
    return parser.parse_args()


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError("нужно целое число не меньше 1")


def _temperature(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 2:
            return float(text)
    raise argparse.ArgumentTypeError("нужно число от 0 до 2")


if __name__ == "__main__":
    sys.exit(main())
