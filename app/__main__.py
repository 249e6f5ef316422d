"""`python -m app`: serve the gateway, as its image does."""

import argparse
import os
import signal
import sys
from tempfile import TemporaryDirectory

import uvicorn

from app.config import ConfigError, load_settings
from app.metrics import FILES_OF_PROCESSES

# After the drain there is nothing to wait for but clients that do not read.
_SHUTDOWN_SECONDS = 5


def main() -> None:
    """Serve until told to stop; impossible settings end with one Russian line and exit code 2."""
    # A container's first process is sent no signal that it does not handle, and the server does so only once it serves.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Шлюз. Настройки — переменные окружения: docs/settings.md.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="адрес, который слушать (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="порт (8080)")
    asked = parser.parse_args()
    try:
        settings = load_settings()
    except ConfigError as exc:
        print(f"Ошибка: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    if settings.web_concurrency == 1:
        _serve(asked.host, asked.port, processes=1)
        return
    with TemporaryDirectory(prefix="gateway-metrics-") as folder:
        os.environ[FILES_OF_PROCESSES] = folder
        _serve(asked.host, asked.port, settings.web_concurrency)


def _serve(host: str, port: int, processes: int) -> None:
    uvicorn.run(
        "app.main:app",
        host=host,
        port=port,
        workers=processes,
        http="app.protocol:BoundedProtocol",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
