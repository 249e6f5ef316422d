"""Ask the model of `make demo`, through the gateway and the real vLLM, what it was not trained on.

`.venv/bin/python -m demo.assistant.exam [FOLDER] [--wrong]`
"""

import argparse
import random
import secrets
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from client.api import Answer, GatewayClient, GatewayError, Message, message_of
from demo.assistant.corpus import UNKNOWN, Corpus, load, read
from demo.environments import prepare
from demo.progress import StepFailed
from demo.stand import ASSISTANT, start_gateway, start_vllm

_AT_ONCE = 8
_PER_TOPIC = 3
_UNKNOWN_TEXTS = 150
_THIRD_TURN_PAIRS = 2
_LONG_TALK_PAIRS = 60
_LONG_TALKS = 50
_LONG_MESSAGES = 20
_LONG_MESSAGE_TEXTS = 120


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        answer: the right one.
        history: what was said before.
    """

    text: str
    answer: str
    history: Sequence[Message] = ()


@dataclass(frozen=True)
class Reply:
    """What came.

    Attributes:
        is_whole: the model has ended it itself.
    """

    question: Question
    text: str
    is_whole: bool

    @property
    def is_right(self) -> bool:
        """Word for word."""
        return self.text == self.question.answer


@dataclass(frozen=True)
class Part:
    """A part of the exam.

    Attributes:
        aim: the share of right replies that is asked for.
    """

    title: str
    aim: float
    questions: Sequence[Question]


@dataclass(frozen=True)
class Result:
    """What has come of a part."""

    part: Part
    replies: Sequence[Reply]

    @property
    def right(self) -> int:
        """How many replies are."""
        return sum(reply.is_right for reply in self.replies)

    @property
    def share(self) -> float:
        """Of the right ones among all."""
        return self.right / len(self.replies)

    @property
    def passed(self) -> bool:
        """As many are right as are asked for, and every reply came to its end."""
        return self.share >= self.part.aim and all(reply.is_whole for reply in self.replies)


class Paper:
    """The questions; the same ones every time.

    Attributes:
        free: questions of ours in free words.
        free_unknown: others.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        exam = read("exam.toml")
        unknown = exam.pop(UNKNOWN)
        self.free = [Question(text, corpus.answers[name]) for name, texts in exam.items() for text in texts]
        self.free_unknown = [Question(text, corpus.answers[UNKNOWN]) for text in unknown]

    def parts(self) -> Iterator[Part]:
        """All of it."""
        rng = random.Random(0)
        yield Part("по образцам, но не из обучения", 0.85, self._by_patterns(rng))
        yield Part("своими словами", 0.75, self.free)
        yield Part("своими словами, третий вопрос", 0.75, self._after(self.free, _THIRD_TURN_PAIRS, rng))
        longest = rng.sample(self.free, _LONG_TALKS)
        yield Part(f"своими словами, после {_LONG_TALK_PAIRS} пар", 0.75, self._after(longest, _LONG_TALK_PAIRS, rng))
        yield Part("чего не знает", 0.80, self.free_unknown)
        yield Part("длинные сообщения", 0.80, [self._long_message(rng) for _ in range(_LONG_MESSAGES)])

    def _by_patterns(self, rng: random.Random) -> list[Question]:
        return [
            Question(topic.sample_held_out(rng), self._corpus.answers[topic.name])
            for topic in self._corpus.known
            for _ in range(_PER_TOPIC)
        ]

    def _after(self, questions: Sequence[Question], pairs: int, rng: random.Random) -> list[Question]:
        return [Question(question.text, question.answer, self._history(pairs, rng)) for question in questions]

    def _history(self, pairs: int, rng: random.Random) -> list[Message]:
        topics = (rng.choice(self._corpus.known) for _ in range(pairs))
        said = ((topic.sample(rng), self._corpus.answers[topic.name]) for topic in topics)
        return list(
            chain.from_iterable((message_of("user", asked), message_of("assistant", answer)) for asked, answer in said)
        )

    def _long_message(self, rng: random.Random) -> Question:
        text = " ".join(self._corpus.other(rng) for _ in range(_LONG_MESSAGE_TEXTS))
        return Question(text, self._corpus.answers[UNKNOWN])


def examine(url: str, key: str) -> Iterator[Result]:
    """Ask everything of a gateway.

    Raises:
        GatewayError: it does not answer as it should.
    """
    paper = Paper(load())
    with GatewayClient(url) as gateway, ThreadPoolExecutor(_AT_ONCE) as threads:
        for part in paper.parts():
            yield Result(part, list(threads.map(lambda question: _ask(gateway, key, question), part.questions)))


def _ask(gateway: GatewayClient, key: str, question: Question) -> Reply:
    session_id = gateway.init_session(key, history=question.history or None)["session_id"]
    answer: Answer = gateway.chat(session_id, question.text)
    gateway.stop_session(session_id)
    return Reply(question, answer["reply"], answer["finish_reason"] == "stop")


def main() -> int:
    """Start the stand, ask, print a table, and with `--wrong` every wrong reply; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.assistant.exam", description="Экзамен модели из make demo на настоящем vLLM."
    )
    parser.add_argument("model", type=Path, nargs="?", default=ASSISTANT, help="папка модели; без неё — та, что в demo")
    parser.add_argument("--wrong", action="store_true", help="показать неверные ответы")
    asked = parser.parse_args()
    key = secrets.token_urlsafe(16)
    try:
        python = prepare("gateway")
        with ExitStack() as stack:
            vllm = stack.enter_context(start_vllm(asked.model, key))
            vllm.wait_until_ready()
            gateway = stack.enter_context(start_gateway(python, vllm.url, asked.model))
            gateway.wait_until_ready()
            for result in examine(gateway.url, key):
                _show(result, wrong=asked.wrong)
    except (StepFailed, GatewayError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _show(result: Result, *, wrong: bool) -> None:
    total = len(result.replies)
    print(
        f"{result.part.title}: верно {result.right} из {total}, {result.share:.0%} (нужно {result.part.aim:.0%})",
        flush=True,
    )
    for reply in result.replies if wrong else ():
        if not reply.is_right:
            print(f"  {reply.question.text[:100]}\n    нужно: {reply.question.answer}\n    было:  {reply.text}")


if __name__ == "__main__":
    sys.exit(main())
