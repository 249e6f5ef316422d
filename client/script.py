"""One question from a program or a pipe: the reply, and nothing but the reply, on standard output."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from rich.console import Console

from client.api import Delta
from client.conversation import Conversation
from client.live import reply_on
from client.status import notes


def answer_one(conversation: Conversation, message: str, console: Console, *, as_json: bool) -> None:
    """Say something and print the reply, or the whole answer as JSON. What is wrong with it goes to standard error.

    Raises:
        GatewayError: there is no reply, or only its beginning.
        KeyboardInterrupt, BrokenPipeError: nobody waits for it any more, and the generation is stopped.
    """
    if as_json:
        print(json.dumps(conversation.reply(message), ensure_ascii=False), flush=True)
    else:
        with _output(console) as say, closing(conversation.stream(message)) as events:
            for event in events:
                if isinstance(event, Delta):
                    say(event.text)
    for note in notes(conversation.turns[-1], "--max-tokens ЧИСЛО"):
        print(note, file=sys.stderr)


@contextmanager
def _output(console: Console) -> Iterator[Callable[[str], None]]:
    """What prints pieces of a reply: as Markdown for a person, every character as it came for a program."""
    if console.is_terminal:
        with reply_on(console, "Ctrl-C — прервать") as reply:
            yield reply.say
        return
    last = ""

    def write(text: str) -> None:
        nonlocal last
        last = text or last
        print(text, end="", flush=True)

    yield write
    if not last.endswith("\n"):
        print(flush=True)
