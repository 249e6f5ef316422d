"""How log lines look: text for people, or an object of JSON in every line."""

import logging

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.msgspec import MsgspecFormatter

from app.config import Settings

_FORMAT = "%(asctime)s %(levelname)s {name}: %(message)s"
_JSON_FIELDS = {"levelname": "level", "name": "logger", "message": "message"}
# What a record has besides the fields that a line has of its own; the last one is uvicorn's.
_RESERVED = (*RESERVED_ATTRS, "color_message")


class TextFormatter(logging.Formatter):
    """One line, with the fields that a line has of its own (`extra`) at its end, as name=value."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """See logging.Formatter."""
        fields = [
            f" {name}={'-' if value is None else value}"
            for name, value in vars(record).items()
            if name not in _RESERVED
        ]
        return super().formatMessage(record) + "".join(fields)


def configure_logging(settings: Settings) -> None:
    """Our own lines at LOG_LEVEL; libraries only when something is wrong."""
    # What no line shows need not be found out for each: https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    ours = logging.StreamHandler()
    ours.setFormatter(_formatter(settings, "%(name)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[ours])
    logging.getLogger("app").setLevel(settings.log_level)
    for handler in logging.getLogger("uvicorn").handlers:
        # Its own name for what it logs beside requests is uvicorn.error, which alarms those who read the log.
        handler.setFormatter(_formatter(settings, "uvicorn"))
    # Without a handler uvicorn does not even make its lines about requests. `RequestId` logs what is worth one.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False


def _formatter(settings: Settings, name: str) -> logging.Formatter:
    if settings.log_format == "json":
        return MsgspecFormatter(
            list(_JSON_FIELDS), rename_fields=_JSON_FIELDS, reserved_attrs=_RESERVED, timestamp="time"
        )
    return TextFormatter(_FORMAT.format(name=name))
