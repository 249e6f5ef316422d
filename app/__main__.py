"""`python -m app`: serve the gateway, as its image does."""

import argparse
import sys

import uvicorn

from app.config import ConfigError, load_settings

# After the drain there is nothing to wait for but clients that do not read.
_SHUTDOWN_SECONDS = 5


def main() -> None:
    """Serve until told to stop; impossible settings end with one Russian line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Шлюз. Настройки — переменные окружения: README, «Настройки шлюза».",
    )
    parser.add_argument("--host", default="127.0.0.1", help="адрес, который слушать (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="порт (8080)")
    asked = parser.parse_args()
    try:
        settings = load_settings()
    except ConfigError as exc:
        print(f"Ошибка: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    uvicorn.run(
        "app.main:app",
        host=asked.host,
        port=asked.port,
        workers=settings.web_concurrency,
        http="app.protocol:BoundedProtocol",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
