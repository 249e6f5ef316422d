"""How log lines look: text for people, or an object of JSON in every line."""

import logging
import time
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.msgspec import MsgspecFormatter

from app.config import Settings

_FORMAT = "%(asctime)s %(levelname)s {name}: %(message)s"
_JSON_FIELDS = {"levelname": "level", "name": "logger", "message": "message"}
# What a record has besides; the last one is uvicorn's, for terminals.
_RESERVED = (*RESERVED_ATTRS, "color_message")


def fields(**values: str | float | None) -> dict[str, object]:
    """What a log line tells besides its words, for `extra`: names and values, in either form of the log."""
    return {"fields": values}


class TextFormatter(logging.Formatter):
    """A line for people: the fields follow the words."""

    def __init__(self, form: str) -> None:
        """`form` as logging has it."""
        super().__init__(form)
        self._second = (0, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """See logging.Formatter; of many lines in a second only the first has its time laid out."""
        del datefmt
        second = int(record.created)
        if second != self._second[0]:
            self._second = (second, time.strftime(self.default_time_format, self.converter(second)))
        return f"{self._second[1]},{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """See logging.Formatter."""
        line = super().formatMessage(record)
        for name, value in vars(record).get("fields", {}).items():
            line += f" {name}={'-' if value is None else value}"
        return line


class JSONFormatter(MsgspecFormatter):
    """A line for programs: one object, the fields among its members."""

    def __init__(self) -> None:
        super().__init__(list(_JSON_FIELDS), rename_fields=_JSON_FIELDS, reserved_attrs=_RESERVED, timestamp="time")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """See BaseJsonFormatter."""
        own = log_data.pop("fields", {})
        return {**log_data, **own}


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
    return JSONFormatter() if settings.log_format == "json" else TextFormatter(_FORMAT.format(name=name))
