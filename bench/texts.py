"""Texts to count and to send: Russian, English, numbers and code, never the same twice."""

import random

_WORDS = (
    "и в не на что он с как это по но они мы за из у же от то для да нет ещё при где шлюз модель контекст история "
    "сессия вопрос ответ токен слово быстро медленно хорошо сегодня завтра человек машина программа память строка "
    "the of and to in is for with gateway model token history answer question function return import class def "
    "0 1 2 17 2026 3.14 x y z i = == + - ( ) [ ] { } : ; , . ! ? «ёж» — 🦔"
).split()
_SEPARATORS = (" ",) * 18 + ("\n", ", ")


def words(chooser: random.Random, count: int) -> str:
    """So many words; a little under two tokens each for most tokenizers."""
    return "".join(chooser.choice(_WORDS) + chooser.choice(_SEPARATORS) for _ in range(count)).rstrip()
