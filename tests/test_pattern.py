"""Learning what a chat template makes of talks: the very same text, or none at all."""

from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.context import ChatMessage, Pair, conversation
from app.errors import UpstreamRejected
from app.pattern import TalkPattern
from tests.tokenizers_at_hand import REAL, folder_of, ours

LOOP = "{% for m in messages %}"
END = "<end>{% endfor %}{{ '<start>assistant' if add_generation_prompt }}"
PLAIN = LOOP + "<start>{{ m.role }}\n{{ m.content }}" + END

Learnt = tuple[TalkPattern, Callable[[Sequence[ChatMessage]], str]]


def learn(source: str) -> Learnt:
    """A template's pattern, and the template itself."""
    environment = ImmutableSandboxedEnvironment()
    environment.globals.update(strftime_now=lambda _: "today", raise_exception=refuse)
    template = environment.from_string(source)

    def render(messages: Sequence[ChatMessage]) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=True)
        except jinja2.TemplateError as exc:
            raise UpstreamRejected from exc

    return TalkPattern(environment.parse(source), render), render


def refuse(says: str) -> Any:
    raise jinja2.TemplateError(says)


def talk(pairs: int, text: str = "а", system: str = "") -> list[ChatMessage]:
    return conversation(system, [Pair.of(f"{text}{n}", f"{n}{text}", None) for n in range(pairs)], text)


LEARNT = {
    "plain": PLAIN,
    "by key": LOOP + "<start>{{ m['role'] + '\n' + m['content'] }}" + END,
    "joined while said": LOOP + "<start>{{ m.role ~ m.content ~ '!' }}" + END,
    "only text": LOOP + "{% if m.content is string and m.content is iterable %}<start>{{ m.content }}{% endif %}" + END,
    "trims": LOOP + "<start>{{ m.content | trim }}" + END,
    "strips a sign": LOOP + "<start>{{ m.content.strip('!') }}" + END,
    "looks for a word": LOOP + "{% if '!' in m.content %}<loud>{% endif %}{{ m.content }}" + END,
    "looks at the beginning": LOOP + "{{ '' if m.content.startswith('!') else m.content }}" + END,
    "looks for a text": LOOP + "{{ '' if m.content == '!' else m.content }}" + END,
    "looks whether it is empty": LOOP + "{{ m.content if m.content else '<nothing>' }}" + END,
    "shows what follows": LOOP + "{{ m.content.split('!')[-1] }}" + END,
    "replaces": LOOP + "{{ m.content.replace('!', '?') }}" + END,
    "system goes last": "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = "
    "messages[1:] %}{% endif %}" + LOOP + "{% if loop.last and s %}{{ s }}\n{% endif %}<{{ m.content }}>" + END,
    "the first is special": LOOP + "{{ '<first>' if loop.first }}{{ m.content }}" + END,
    "the last are special": LOOP + "{{ '<late>' if loop.revindex0 < 3 }}{{ m.content }}" + END,
    "a number": LOOP + "{{ '<late>' if loop.index > 7 }}{{ m.content }}" + END,
    "counts": "{% set ns = namespace(n=0) %}" + LOOP + "{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}"
    "{{ '<late>' if ns.n > 9 }}{{ m.content }}" + END,
    "looks ahead": "{% set ns = namespace(at=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' and not ns.at "
    "and not m.content.startswith('!') %}{% set ns.at = messages | length - loop.index0 %}{% endif %}{% endfor %}"
    + (LOOP + "{{ '<old>' if loop.index < ns.at }}{{ m.content }}" + END),
    "wants to alternate": "{% set ns = namespace(n=0) %}" + LOOP + "{% if m.role != 'system' %}{% if (m.role == 'user')"
    " != (ns.n % 2 == 0) %}{{ raise_exception('') }}{% endif %}{% set ns.n = ns.n + 1 %}{% endif %}{{ m.content }}"
    + END,
    "roles in a list": LOOP + "{{ '<loud>' if m.role in ['user', 'system'] }}{{ m.content }}" + END,
    "tool calls, if there were any": LOOP + "{% for call in m.tool_calls %}{% set out = call.function | tojson %}"
    "{{ out[:-1] ~ (call.id | tojson) + (call | tojson) }}{% endfor %}{{ m.content }}" + END,
    "tools, if there were any": "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN,
}  # fmt: skip

NOT_LEARNT = {
    "measures": LOOP + "{{ '<long>' if m.content | length > 5 }}{{ m.content }}" + END,
    "looks at a letter": LOOP + "{{ '<loud>' if m.content[0] == '!' }}{{ m.content }}" + END,
    "cuts": LOOP + "{{ m.content[:9] }}" + END,
    "goes letter by letter": LOOP + "{% for c in m.content %}{{ c }}{% endfor %}" + END,
    "in capitals": LOOP + "{{ m.content.upper() }}" + END,
    "looks for capitals": LOOP + "{{ '<loud>' if m.content is upper }}{{ m.content }}" + END,
    "escapes": LOOP + "{{ m.content | e }}" + END,
    "as JSON": LOOP + "{{ m.content | tojson }}" + END,
    "decides by JSON": LOOP + "{{ '<loud>' if '!' in (m | tojson) }}{{ m.content }}" + END,
    "decides by what it put together": LOOP + "{% set x = m.role + m.content %}{{ 'x' if 'user!' in x }}{{ x }}" + END,
    "joins before it says": LOOP + "{% set x = m.role ~ m.content %}{{ 'x' if 'user!' in x }}{{ x }}" + END,
    "decides by the JSON of a text": LOOP + "{{ 'x' if '!' in m.content | tojson }}{{ m.content }}" + END,
    "decides by messages as text": LOOP + "{{ 'x' if '!' in messages | string }}{{ m.content }}" + END,
    "looks for the text in words": LOOP + "{{ 'x' if m.content in 'yes!' }}{{ m.content }}" + END,
    "looks for the text in words by a test": LOOP + "{{ 'x' if m.content is in 'yes!' }}{{ m.content }}" + END,
    "selects by the text in words": "{{ messages | selectattr('content', 'in', 'yes!') | list | length }}" + PLAIN,
    "asks words about the text": LOOP + "{{ 'x' if 'yes!'.endswith(m.content) }}{{ m.content }}" + END,
    "joins by a method": LOOP + "{% set x = ''.join([m.content]) %}{{ 'x' if '!' in x }}{{ x }}" + END,
    "trims words by the text": LOOP + "{{ 'yes!' | trim(m.content) }}{{ m.content }}" + END,
    "takes a text for a sequence": LOOP + "{{ 'x' if m.content is sequence }}{{ m.content }}" + END,
    "asks a test by a name made up": "{{ messages | selectattr('content', 'up' + 'per') | list | length }}" + PLAIN,
    "asks a test by a name in a list": "{{ messages | selectattr(*['content', 'upper']) | list | length }}" + PLAIN,
    "trims words by a text in a list": LOOP + "{{ 'yes!' | trim(*[m.content]) }}{{ m.content }}" + END,
    "JSON of a member with a tool's name": LOOP + "{% set ns = namespace(function=m.content) %}"
    "{{ 'x' if '!' in ns.function | tojson }}{{ m.content }}" + END,
    "JSON of a member called so later": "{% set ns = namespace() %}" + LOOP + "{% set ns.function = m.content %}"
    "{{ 'x' if '!' in ns.function | tojson }}{{ m.content }}" + END,
    "JSON of an object's member": LOOP + "{{ 'x' if '!' in {'function': m.content}.function | tojson }}{{ m.content }}"
    + END,
    "a long list": LOOP + "{{ [" + "1, " * 25 + "2][loop.index0] }}{{ m.content }}" + END,
    "a long cycle": LOOP + "{{ loop.cycle(" + "1, " * 24 + "2) }}{{ m.content }}" + END,
    "a long word": LOOP + "{{ '<late>' if loop.index > '" + "a" * 30 + "' | length }}{{ m.content }}" + END,
    "a letter of a word": LOOP + "{{ '" + "a" * 29 + "b'[loop.index0] }}{{ m.content }}" + END,
    "formats": LOOP + "{% set x = '%s!' % m.content %}{{ 'x' if '!!' in x }}{{ x }}" + END,
    "formats some": LOOP + "{% set x = '%s!' % (m.content,) %}{{ 'x' if '!!' in x }}{{ x }}" + END,
    "a macro": "{% macro f(c) %}{{ c }}{% endmacro %}" + LOOP + "{{ 'x' if '!' in f(m.content) }}{{ m.content }}" + END,
    "a block": LOOP + "{% set x %}{{ m.content }}{% endset %}{{ 'x' if '!' in x }}{{ x }}" + END,
    "compares messages": LOOP + "{{ 'x' if m == messages[0] }}{{ m.content }}" + END,
    "compares texts": LOOP + "{{ 'x' if m.content == messages[0].content }}{{ m.content }}" + END,
    "orders texts": LOOP + "{{ 'x' if m.content > 'b' }}{{ m.content }}" + END,
    "says it twice": LOOP + "{{ m.content }}{{ m.content }}" + END,
    "leaves replies out": LOOP + "{{ m.content if m.role == 'user' }}" + END,
    "the other way round": "{% for m in messages[::-1] %}<start>{{ m.content }}" + END,
    "every third": LOOP + "{{ '<third>' if loop.index0 % 3 == 0 }}{{ m.content }}" + END,
    "a large number": LOOP + "{{ '<late>' if loop.index > 50 }}{{ m.content }}" + END,
    "numbers that are added": LOOP + "{{ '<late>' if loop.index > 20 + 20 + 20 }}{{ m.content }}" + END,
    "every twentieth": LOOP + "{{ '<20>' if loop.index0 % 20 == 0 }}{{ m.content }}" + END,
    "begins again": "{% set ns = namespace(n=0) %}" + LOOP + "{% if m.role == 'user' %}{% set ns.n = ns.n + 1 if "
    "ns.n < 20 else 0 %}{% endif %}{{ '<20>' if ns.n == 20 }}{{ m.content }}" + END,
    "a fraction": "{% set ns = namespace(n=0) %}" + LOOP + "{% set ns.n = ns.n + 0.1 %}{{ '<late>' if ns.n > 8 }}"
    "{{ m.content }}" + END,
    "a quotient": LOOP + "{{ '<late>' if loop.index // 10 > 9 }}{{ m.content }}" + END,
    "asks a test by name": "{{ messages | selectattr('content', 'upper') | list | length }}" + PLAIN,
    "a product": LOOP + "{{ '<late>' if loop.index > 8 * 9 }}{{ m.content }}" + END,
    "the date": "{{ strftime_now('%d') }}" + PLAIN,
    "takes all members": LOOP + "{% for k, v in m.items() %}{{ v }}{% endfor %}" + END,
}  # fmt: skip

WORDS = ["!", "user", " ", "\n", "а", "ё", "<think>", "</think>", "<tool_response>", "</tool_response>", "🦔"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map("".join)
PAIRS = st.lists(st.builds(Pair.of, TEXTS, TEXTS, st.none()), max_size=25)


@pytest.mark.parametrize("name", LEARNT)
def test_what_is_learnt_is_rendered_to_the_letter(name: str) -> None:
    pattern, render = learn(LEARNT[name])
    for pairs in (*range(30), 60):
        for messages in (talk(pairs), talk(pairs, system="Ты — ёж.")):
            assert pattern.render(messages) == render(messages)

    @settings(max_examples=100, deadline=None)
    @given(TEXTS, PAIRS, TEXTS)
    def check(system: str, pairs: list[Pair], message: str) -> None:
        messages = conversation(system, pairs, message)
        assert pattern.render(messages) in (render(messages), None)

    check()


@pytest.mark.parametrize("name", NOT_LEARNT)
def test_what_could_decide_unseen_is_not_learnt(name: str) -> None:
    pattern, _ = learn(NOT_LEARNT[name])
    assert pattern.render(talk(1)) is None
    assert pattern.render(talk(1, system="Ты — ёж.")) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", ""),
        ("trims", " а"),
        ("trims", "а\n"),
        ("strips a sign", "а!"),
        ("looks for a word", "а!а"),
        ("looks at the beginning", "!а"),
        ("looks for a text", "!"),
        ("shows what follows", "а!а"),
        ("replaces", "!"),
        ("looks ahead", "!"),
    ],
)
def test_a_text_that_the_template_looks_for_is_left_to_the_template(name: str, text: str) -> None:
    pattern, _ = learn(LEARNT[name])
    assert pattern.render(talk(3)) is not None
    assert pattern.render([*talk(3)[:-1], {"role": "user", "content": text}]) is None


def test_a_template_that_refuses_the_system_message_is_learnt_without() -> None:
    pattern, _ = learn("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN)
    assert pattern.render(talk(3)) is not None
    assert pattern.render(talk(3, system="Ты — ёж.")) is None


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", REAL)
def test_the_templates_of_real_models_are_learnt(name: str) -> None:
    template = ours(folder_of(name)).template
    pattern, renderer = template.pattern, template._plain  # noqa: SLF001 - which of the two it was does not show
    assert pattern is not None
    folded = template.folds_system_prompt
    assert pattern.render(talk(30)) is not None
    assert folded or pattern.render(talk(30, system="Ты — ёж.")) is not None

    @settings(max_examples=150, deadline=None)
    @given(TEXTS, PAIRS, TEXTS)
    def check(system: str, pairs: list[Pair], message: str) -> None:
        messages = conversation(system, pairs, message, folded=folded)
        assert pattern.render(messages) in (renderer.render(messages, {}), None)

    check()
