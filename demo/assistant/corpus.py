"""What the model is trained on: conversations of our own questions and answers, and of questions without an answer."""

import hashlib
import random
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from demo.assistant.pattern import texts

FINGERPRINT_FILE = "corpus.sha256"
"""In the model's folder: what it was trained on."""
UNKNOWN = "unknown"
"""The name of the answer to whatever is no question of ours."""

_HERE = Path(__file__).resolve().parent
_FILES = ("questions.toml", "unknown.toml", "system_prompts.toml")
_HELD_OUT_OF = 10
_UNKNOWN_SHARE = 0.3
_MANY_SHARE = 0.05
_MANY = (2, 12)


class Topic:
    """One question of ours, or the unknown ones on one subject.

    Attributes:
        name: what it is called in the files.
        patterns: how it is asked: the texts of each pattern.
    """

    def __init__(self, name: str, ask: list[str]) -> None:
        self.name = name
        self.patterns = [texts(pattern) for pattern in ask]
        # One of many texts comes more often than one of few, but not by as much as it has more.
        self._weights = list(accumulate(len(found) ** 0.3 for found in self.patterns))

    def texts(self) -> list[str]:
        """All of them."""
        return list(chain.from_iterable(self.patterns))

    def sample(self, rng: random.Random) -> str:
        """One of the texts that are trained on."""
        return next(text for _, text in self._draws(rng) if not is_held_out(text))

    def sample_held_out(self, rng: random.Random) -> str:
        """One that is never trained on, though others of its pattern are."""
        return next(text for found, text in self._draws(rng) if len(found) > 1 and is_held_out(text))

    def _draws(self, rng: random.Random) -> Iterator[tuple[list[str], str]]:
        while True:
            [found] = rng.choices(self.patterns, cum_weights=self._weights)
            yield found, rng.choice(found)


@dataclass(frozen=True)
class Turn:
    """A question, and the name of its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Corpus:
    """All of it.

    Attributes:
        answers: by names of topics.
        known: the questions of ours.
        unknown: the questions that have the answer `UNKNOWN`.
        system_prompts: what conversations begin with, the gateway's own first.
    """

    answers: dict[str, str]
    known: tuple[Topic, ...]
    unknown: tuple[Topic, ...]
    system_prompts: tuple[str, ...]

    def messages(self, count: int, rng: random.Random) -> list[str]:
        """What a tokenizer is trained on: every answer, and so many questions."""
        return [*self.answers.values(), *self.system_prompts, *(self.turn(rng).question for _ in range(count))]

    def system_prompt(self, rng: random.Random) -> str:
        """The gateway's own more often than others; sometimes none, sometimes any text."""
        draw = rng.random()
        if draw < 0.4:
            return self.system_prompts[0]
        if draw < 0.5:
            return ""
        if draw < 0.6:
            return self.other(rng)
        return rng.choice(self.system_prompts)

    def turn(self, rng: random.Random) -> Turn:
        """A question of ours or another one; others are now and then many in one message."""
        if rng.random() >= _UNKNOWN_SHARE:
            topic = rng.choice(self.known)
            return Turn(written(topic.sample(rng), rng), topic.name)
        count = rng.randint(*_MANY) if rng.random() < _MANY_SHARE else 1
        return Turn(" ".join(self.other(rng) for _ in range(count)), UNKNOWN)

    def other(self, rng: random.Random) -> str:
        """A question that is none of ours."""
        return written(rng.choice(self.unknown).sample(rng), rng)


def load() -> Corpus:
    """Read the files of the corpus."""
    questions, unknown, prompts = map(read, _FILES)
    answers = {name: question["answer"] for name, question in questions.items()} | {UNKNOWN: unknown.pop("answer")}
    return Corpus(
        answers,
        tuple(Topic(name, question["ask"]) for name, question in questions.items()),
        tuple(Topic(name, ask) for name, ask in unknown.items()),
        tuple(prompts["trained"]),
    )


def fingerprint() -> str:
    """What tells this corpus from any other: weights keep it, as what they were trained on."""
    return hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in _FILES)).hexdigest()


def read(name: str) -> dict[str, Any]:
    """A TOML file of this folder."""
    return tomllib.loads((_HERE / name).read_text(encoding="utf-8"))


def is_held_out(text: str) -> bool:
    """Whether a question is never trained on, so that it may be asked in an exam: every tenth is."""
    return zlib.crc32(text.encode()) % _HELD_OUT_OF == 0


OPENERS = (
    "подскажите", "подскажи", "подскажите, пожалуйста", "скажи", "скажите", "скажи, пожалуйста", "пожалуйста, скажи",
    "объясни", "объясните", "объясни, пожалуйста", "расскажи", "слушай", "слушай,", "а", "а вот", "ну", "так", "и",
    "привет!", "привет,", "здравствуйте!", "добрый день!", "добрый день,", "хм,", "извините,", "простите,", "вопрос:",
    "ещё вопрос:", "хотел спросить,", "хочу спросить,", "хотелось бы узнать,", "не подскажете,", "можешь сказать,",
    "интересно,", "мне интересно,", "ок,", "хорошо,", "понятно, а", "ясно, а", "спасибо, а", "спасибо!", "кстати,",
    "эй,", "друг,", "народ,", "коллеги,", "в общем,", "короче,", "напомни", "напомни, пожалуйста", "поясни",
)  # fmt: skip
CLOSERS = ("пожалуйста", "а", "спасибо", "подскажите", "не знаешь", "если можно", "коротко", "вообще", "тут", "здесь")
_NEIGHBOURS = (
    "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю",
)  # fmt: skip


def written(text: str, rng: random.Random) -> str:
    """A question as people write it: with an opening, a capital or none, its mark or none, and slips of the finger."""
    if rng.random() < 0.25:
        text = f"{rng.choice(OPENERS)} {text}"
    if rng.random() < 0.05:
        text = f"{text}, {rng.choice(CLOSERS)}"
    if rng.random() < 0.5:
        text = text.replace("ё", "е")
    draw = rng.random()
    if draw < 0.12:
        text = text.lower()
    elif draw < 0.14:
        text = text.upper()
    elif draw < 0.65:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.12:
        text = _mistyped(text, rng)
    if rng.random() < 0.1:
        text = text.replace(",", "")
    mark = rng.choices(("?", "", ".", "!", "??", "...", " ?"), (50, 30, 12, 4, 1, 1, 1))[0]
    return text + mark


def _mistyped(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text))
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at : at + 1] + text[at:]
    if kind == 2:
        return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
    row = next((row for row in _NEIGHBOURS if text[at] in row), text[at])
    near = row.find(text[at]) + rng.choice((-1, 1))
    return text[:at] + row[near % len(row)] + text[at + 1 :]
