"""`make demo`: from nothing to a conversation by one command; everything it started is stopped at the end."""

import io
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from demo.environments import ROOT, VLLM_VENV, prepare, prepare_vllm
from demo.progress import StepFailed
from demo.stand import ASSISTANT, DEFAULT_MAX_MODEL_LEN, start_gateway, start_vllm

_USER_MODEL = ROOT / "model"
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # our lines among the client's, also in a pipe
    for signum in _STOPPING:
        signal.signal(signum, _on_signal)
    try:
        return _demo()
    except StepFailed as exc:
        print(f"\nНе получилось. {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Прервано, всё остановлено.", file=sys.stderr)
        return 130


def _demo() -> int:
    max_model_len = max_model_len_in(os.environ)
    if not VLLM_VENV.exists():
        print("Первый запуск готовит окружения и занимает несколько минут; следующие — меньше минуты.")
    python = prepare("gateway")
    prepare_vllm()
    model = _model()
    key = secrets.token_urlsafe(16)
    with ExitStack() as stack:
        vllm = stack.enter_context(start_vllm(model, key, max_model_len))
        vllm.wait_until_ready()
        gateway = stack.enter_context(start_gateway(python, vllm.url, model))
        gateway.wait_until_ready()
        print(f"\nОписание API: {gateway.url}/docs. Чтобы обращаться к шлюзу из другого терминала:")
        print(f"  export GATEWAY={gateway.url} KEY={key}\n")
        environ = {**os.environ, "VLLM_API_KEY": key}
        code = _in_foreground([str(python), "-m", "client", "--url", gateway.url], environ)
        _finish_undisturbed()
    print("Серверы остановлены.")
    return code


def max_model_len_in(environ: Mapping[str, str]) -> int:
    """The stand's VLLM_MAX_MODEL_LEN, tokens. Raises StepFailed for what is no number of them."""
    given = environ.get("VLLM_MAX_MODEL_LEN") or str(DEFAULT_MAX_MODEL_LEN)
    if not re.fullmatch("[1-9][0-9]{0,8}", given):
        raise StepFailed(f"VLLM_MAX_MODEL_LEN={given}: нужна длина контекста модели, целое число токенов больше 0.")
    return int(given)


def _on_signal(signum: int, _frame: FrameType | None) -> None:
    _finish_undisturbed()
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + signum)


def _finish_undisturbed() -> None:
    """From here on only the servers are stopped: an impatient second Ctrl-C must not leave them running."""
    for signum in _STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    with suppress(OSError):  # the terminal may be gone
        print("\nОстанавливаю…", flush=True)


def _model() -> Path:
    if (_USER_MODEL / "config.json").exists():
        print(f"Модель: ваша, из папки {_USER_MODEL}.")
        return _USER_MODEL
    if _USER_MODEL.exists() and any(_USER_MODEL.iterdir()):
        raise StepFailed(
            f"В папке {_USER_MODEL} нет config.json, а нужна модель целиком: веса, config.json, токенизатор, шаблон "
            "чата. Дополните папку или уберите её."
        )
    print("Модель: в папке ./model ничего нет, поэтому демонстрационная, на 2 миллиона параметров.")
    print("Она знает только этот продукт, остального не знает и иногда ошибается. Спросите: что такое шлюз?")
    return ASSISTANT


def _in_foreground(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a program as the terminal's foreground process group, as a shell does.

    Ctrl-C then goes to it alone: to this program and to `make` above it, Ctrl-C means the end.
    """
    if not sys.stdin.isatty():
        return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def take_terminal() -> None:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # there is no shell to bring it back

    child = subprocess.Popen(command, cwd=ROOT, env=environ, preexec_fn=take_terminal)  # noqa: PLW1509 - no threads
    try:
        return child.wait()
    finally:
        child.terminate()
        child.wait()
        os.tcsetpgrp(0, os.getpgrp())


if __name__ == "__main__":
    sys.exit(main())
