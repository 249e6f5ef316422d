"""A talk as a file, in Markdown for people or in JSON for programs; both are read back exactly.

JSON has the shape of `/history`: {"system_prompt", "messages": [{"role", "content", "finish_reason"?}]}. Markdown has a
heading for every message, after a comment that a reader does not see and that says whose it is. A `finish_reason` that
is None is read back as none at all; Markdown of a talk in which nothing was said is empty, and no talk.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from client.api import Message, message_of
from client.files import write_whole
from client.words import ending_of, is_json, why

_HEADINGS = {"system": "Системный промпт", "user": "Вы", "assistant": "Модель"}
# An editor may have cut the empty lines at the end of the file.
_MARK = re.compile(r"^<!-- chat (system|user|assistant)(?: ([^ \n]*))? -->\n(?:## [^\n]*(?:\n\n|\n?\Z))?", re.MULTILINE)
# A line of a message that looks like one of our marks, however often escaped.
_LIKE_A_MARK = re.compile(r"^(\\*)(?=<!-- chat )", re.MULTILINE)
_ESCAPED_MARK = re.compile(r"^\\(?=\\*<!-- chat )", re.MULTILINE)


class TranscriptError(Exception):
    """A file cannot be written, or is no talk; the message is Russian."""


@dataclass(frozen=True)
class Transcript:
    """A talk. `messages`: whole pairs, user and assistant; `system_prompt`: None is not known."""

    system_prompt: str | None
    messages: Sequence[Message]


def save(transcript: Transcript, path: Path) -> None:
    """Write a talk to a file, whole or not at all, in the form that its name asks for; its rights stay.

    Raises:
        TranscriptError: the name ends neither in .md nor in .json, or the file cannot be written.
    """
    data = (to_json(transcript) if _is_json(path) else to_markdown(transcript)).encode()
    try:
        write_whole(path.resolve(), data)  # of a link, what it leads to
    except (OSError, ValueError) as exc:
        raise TranscriptError(f"{path} не записывается: {why(exc)}.") from exc


def load(path: Path) -> Transcript:
    """Read a talk from a file.

    Raises:
        TranscriptError: it cannot be read or is no talk of whole pairs.
    """
    reads_json = _is_json(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise TranscriptError(f"{path}: это не текст в UTF-8.") from exc
    except (OSError, ValueError) as exc:
        raise TranscriptError(f"{path} не читается: {why(exc)}.") from exc
    transcript = from_json(text) if reads_json else from_markdown(text)
    if transcript is None:
        raise TranscriptError(f"{path}: это не разговор, сохранённый командой /save.")
    for number, message in enumerate(transcript.messages):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise TranscriptError(f"{path}: сообщение {number + 1} не на месте: вопросы и ответы должны чередоваться.")
    if len(transcript.messages) % 2:
        raise TranscriptError(f"{path}: у последнего вопроса нет ответа.")
    return transcript


def to_json(transcript: Transcript) -> str:
    """See the module."""
    told: dict[str, Any] = {"messages": transcript.messages}
    if transcript.system_prompt is not None:
        told = {"system_prompt": transcript.system_prompt, **told}
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


def from_json(text: str) -> Transcript | None:
    """Also what `/history` answers, and a bare list of messages; None if it is neither."""
    try:
        told = json.loads(text)
    except (RecursionError, ValueError):
        return None
    if isinstance(told, list):
        told = {"messages": told}
    if not (isinstance(told, dict) and is_json(told)):
        return None
    system_prompt, items = told.get("system_prompt"), told.get("messages")
    if not (isinstance(system_prompt, str | None) and isinstance(items, list)):
        return None
    messages: list[Message] = []
    for item in items:
        match item:
            case {"role": str(role), "content": str(content)}:
                messages.append(message_of(role, content, item.get("finish_reason")))
            case _:
                return None
    return _transcript(system_prompt, messages)


def to_markdown(transcript: Transcript) -> str:
    """See the module."""
    parts = []
    if transcript.system_prompt is not None:
        parts.append(_section("system", transcript.system_prompt, None))
    parts += [_section(said["role"], said["content"], said.get("finish_reason")) for said in transcript.messages]
    return "\n".join(parts)


def from_markdown(text: str) -> Transcript | None:
    """None if there is no mark of ours."""
    if not re.search(r"(?<!\r)\n", text):  # an editor has made all line ends its own
        text = text.replace("\r\n", "\n")
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    messages = []
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), None], strict=True):
        body = text[mark.end() : end]
        content = body.removesuffix("\n") if end is None else body.removesuffix("\n").removesuffix("\n")
        messages.append(message_of(mark[1], _ESCAPED_MARK.sub("", content), mark[2] and unquote(mark[2])))
    return _transcript(None, messages)


def _transcript(system_prompt: str | None, messages: Sequence[Message]) -> Transcript:
    """A talk, whose first message may be the system prompt."""
    if system_prompt is None and messages and messages[0]["role"] == "system":
        return Transcript(messages[0]["content"], messages[1:])
    return Transcript(system_prompt, messages)


def _section(role: str, content: str, finish_reason: str | None) -> str:
    told = role if finish_reason is None else f"{role} {quote(finish_reason, safe='')}"
    escaped = _LIKE_A_MARK.sub(r"\1\\", content)
    ending = " ".join(ending_of({"finish_reason": finish_reason}).split())
    heading = f"{_HEADINGS[role]} ({ending})" if ending else _HEADINGS[role]
    return f"<!-- chat {told} -->\n## {heading}\n\n{escaped}\n"


def _is_json(path: Path) -> bool:
    match path.suffix.lower():
        case ".json":
            return True
        case ".md":
            return False
    raise TranscriptError("Имя файла должно кончаться на .md или .json.")
