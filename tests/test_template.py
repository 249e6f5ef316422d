"""A model's chat template: the same text as vLLM's, whatever its form, and what it does to a conversation."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import ConfigError
from app.context import Pair, conversation
from app.errors import UpstreamRejected
from app.template import template_arguments
from app.tokenizer import ChatTokenizer
from app.vllm import RequestSchema
from tests.tokenizers_at_hand import REAL, folder_of, ours, text_by_transformers

NEW = RequestSchema()
OLD = RequestSchema(knows_strict_tools=False, effort_sets_thinking=False)

LOOP = "{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
PLAIN = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>" + END
TALK = [Pair.of("раз", "два", None), Pair.of("три", "", None)]


@pytest.fixture
def with_template(linked_model: Path) -> Any:
    """Loads the small model with another template."""

    def load(template: str) -> ChatTokenizer:
        (linked_model / "chat_template.jinja").unlink()
        (linked_model / "chat_template.jinja").write_text(template, encoding="utf-8")
        return ChatTokenizer.load(str(linked_model))

    return load


def render(tokenizer: ChatTokenizer, system_prompt: str = "", message: str = "ещё", **arguments: Any) -> str:
    template = tokenizer.template
    return template.render(conversation(system_prompt, TALK, message, folded=template.folds_system_prompt), arguments)


# --- the same text ---


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", REAL)
def test_the_text_is_transformers_own(name: str) -> None:
    folder = folder_of(name)
    texts = st.text(max_size=20) | st.sampled_from(
        ["<think>\nа\n</think>\n\nб", "<tool_response></tool_response>", " \n"]
    )
    pairs = st.lists(st.builds(Pair.of, texts, texts, st.none()), max_size=4)
    tool = {"type": "function", "function": {"name": "f", "description": None, "parameters": {"a": ["ё", 1.5, True]}}}
    arguments = st.sampled_from(
        [{}, {"enable_thinking": False}, {"tools": [tool]}, {"documents": [{"title": "т"}]}, {"bos_token": "<B>"}]
    )

    @settings(max_examples=150, deadline=None)
    @given(texts, pairs, texts, arguments)
    def check(system_prompt: str, pairs: list[Pair], message: str, arguments: dict[str, Any]) -> None:
        template = ours(folder).template
        messages = conversation(system_prompt, pairs, message, folded=template.folds_system_prompt)
        assert template.render(messages, arguments) == text_by_transformers(folder, messages, arguments)

    check()


def test_namespaces_and_fields_mean_what_they_do_in_the_sandbox(with_template: Any) -> None:
    """The look-ups that are made quick, and those beside them that are not."""
    tokenizer = with_template(
        "{% set ns = namespace(seen=0, items=7) %}"
        "{% for m in messages %}{% set ns.seen = ns.seen + 1 %}{{ m.role }}{{ m['content'] }}{{ m.nothing }}"
        "{{ m.nothing is defined }}{{ m.items() | length }}{{ m.get('x', '-') }}{{ m['nothing'] is defined }}"
        "{% endfor %}"
        "{{ ns.seen }}{{ ns.items }}{{ ns.absent is defined }}{{ '{}!'.format(ns.seen) }}"
    )
    shown = tokenizer.template.render([{"role": "user", "content": "а"}], {})
    assert shown == "userа" + "" + "False" + "2" + "-" + "False" + "1" + "7" + "False" + "1!"


@pytest.mark.parametrize(
    "escape",
    ["messages.__class__.x", "ns.__class__.x", "messages[0].__class__.x", "messages.append(1)", "messages[0].pop(1)"],
)
def test_a_template_stays_in_its_sandbox(with_template: Any, escape: str) -> None:
    with pytest.raises(ConfigError, match=r"unsafe|not safely callable"):
        with_template("{% set ns = namespace(a=1) %}{{ messages[0].content }}" + "{{ " + escape + " }}")


# --- contents in parts ---

TRIMS_TEXT_ONLY = (
    LOOP + "<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>" + END
)


def test_a_template_that_looks_for_parts_is_given_parts(with_template: Any) -> None:
    """As vLLM does for the templates of models that also see pictures; then this one does not trim."""
    assert "\n  края  <|im_end|>" in render(with_template(TRIMS_TEXT_ONLY), message="  края  ")


@pytest.mark.parametrize(
    "content", ["m.content", "m.content | string", "m.content | tojson", "m.content + ''", "m['content'] | trim"]
)
def test_a_template_that_does_not_is_given_text(with_template: Any, content: str) -> None:
    shown = render(with_template(LOOP + "<|im_start|>{{ m.role }}\n{{ " + content + " }}<|im_end|>" + END))
    assert "type" not in shown
    assert "ещё" in shown


# --- which template ---


def test_a_template_for_tools_is_used_with_tools(linked_model: Path) -> None:
    (linked_model / "chat_template.jinja").unlink()
    config = json.loads((linked_model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (linked_model / "tokenizer_config.json").unlink()
    named = [
        {"name": "default", "template": PLAIN},
        {"name": "tool_use", "template": "{{ tools[0].function.name }}" + PLAIN},
    ]
    (linked_model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}), encoding="utf-8")
    tokenizer = ChatTokenizer.load(str(linked_model))
    with_tools = render(tokenizer, tools=[{"type": "function", "function": {"name": "погода"}}])
    assert with_tools == "погода" + render(tokenizer)


def test_the_template_of_an_older_model_with_pictures_lies_apart(linked_model: Path) -> None:
    """Its tokenizer may have none."""
    (linked_model / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="нет шаблона чата"):
        ChatTokenizer.load(str(linked_model))
    (linked_model / "chat_template.json").write_text(json.dumps({"chat_template": PLAIN}), encoding="utf-8")
    with pytest.raises(ConfigError, match="нет шаблона чата"):
        ChatTokenizer.load(str(linked_model))
    (linked_model / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    assert "ещё" in render(ChatTokenizer.load(str(linked_model)))


@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"chat_template": 5'])
def test_damaged_templates_apart_are_none(linked_model: Path, content: str) -> None:
    (linked_model / "chat_template.jinja").unlink()
    (linked_model / "chat_template.json").write_text(content, encoding="utf-8")
    (linked_model / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="нет шаблона чата"):
        ChatTokenizer.load(str(linked_model))


# --- what it does to a conversation ---


def test_a_template_without_a_system_role_gets_the_prompt_in_the_first_message(with_template: Any) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = with_template(refuses + PLAIN)
    assert tokenizer.template.folds_system_prompt
    assert tokenizer.warnings == [], "as the model was made"
    assert render(tokenizer, "Ты — ёж.").startswith("<|im_start|>user\nТы — ёж.\n\nраз<|im_end|>")


def test_a_template_that_drops_the_system_prompt_is_found_out(with_template: Any) -> None:
    tokenizer = with_template(
        PLAIN.replace(LOOP, LOOP + "{% if m.role != 'system' %}").replace(END, "{% endif %}" + END)
    )
    [warning] = tokenizer.warnings
    assert "молча выбрасывает системное сообщение" in warning
    assert "Ты — ёж.\n\nраз" in render(tokenizer, "Ты — ёж.")


def test_a_template_that_drops_it_only_later_in_a_talk_is_found_out_too(with_template: Any) -> None:
    only_alone = "{% if m.role != 'system' or messages | length < 3 %}"
    tokenizer = with_template(PLAIN.replace(LOOP, LOOP + only_alone).replace(END, "{% endif %}" + END))
    assert "молча выбрасывает системное сообщение" in tokenizer.warnings[0]
    assert tokenizer.template.folds_system_prompt


@pytest.mark.parametrize(
    ("loop", "lost"),
    [
        ("{% for m in messages[-1:] %}", "прежние вопросы и прежние ответы"),
        ("{% for m in messages if m.role != 'assistant' %}", "прежние ответы"),
        ("{% for m in messages if m.role != 'user' %}", "новое сообщение и прежние вопросы"),
    ],
)
def test_a_template_that_drops_what_was_said_is_found_out(with_template: Any, loop: str, lost: str) -> None:
    warnings = with_template(PLAIN.replace(LOOP, loop)).warnings
    told = [warning for warning in warnings if "модель этого не увидит" in warning]
    assert told == [f"Шаблон чата молча выбрасывает {lost}: модель этого не увидит"]


def test_a_template_that_allows_one_message_only_is_reported_with_its_own_words(with_template: Any) -> None:
    single = "{% if messages | length > 2 %}{{ raise_exception('single turn only') }}{% endif %}"
    tokenizer = with_template(single + PLAIN)
    warnings = "".join(tokenizer.warnings)
    assert "не продолжить дальше первого сообщения" in warnings
    assert "single turn only" in warnings
    assert not tokenizer.template.folds_system_prompt
    with pytest.raises(UpstreamRejected, match="upstream_rejected") as caught:
        render(tokenizer)
    assert "single turn only" in caught.value.detail


def test_a_template_that_refuses_everything_stops_the_start_with_its_own_words(with_template: Any) -> None:
    with pytest.raises(ConfigError, match=r"не работает.*never"):
        with_template("{{ raise_exception('never') }}")


def test_a_template_without_special_tokens_is_counted_slowly_and_says_so(with_template: Any) -> None:
    tokenizer = with_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    [warning] = tokenizer.warnings
    assert "считать каждый раз по всему разговору" in warning


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", REAL)
def test_real_models_are_what_they_are_known_to_be(name: str) -> None:
    tokenizer = ours(folder_of(name))
    assert tokenizer.template.folds_system_prompt == (name == "gemma-2-hybrid")
    assert tokenizer.warnings == []


@pytest.mark.shared_tokenizers
def test_mistrals_system_prompt_is_in_the_last_message_wherever_the_window_begins() -> None:
    shown = render(ours(folder_of("mistral-nemo")), "Ты — ёж.")
    assert "[INST]Ты — ёж.\n\nещё[/INST]" in shown
    assert shown.count("Ты — ёж.") == 1


# --- what of a request the template is given ---


def test_what_the_template_is_given_of_extra() -> None:
    given = {"top_p": 1, "chat_template_kwargs": {"a": 1, "b": None, "c": "auto", "d": []}, "documents": []}
    assert template_arguments(given, NEW) == {"a": 1, "d": [], "documents": []}
    assert template_arguments({"chat_template_kwargs": [], "tools": None, "documents": None}, NEW) == {}


def test_an_effort_sets_thinking_unless_given() -> None:
    assert template_arguments({"reasoning_effort": "low"}, NEW) == {"reasoning_effort": "low", "enable_thinking": True}
    assert template_arguments({"reasoning_effort": "none"}, NEW)["enable_thinking"] is False
    for own in (True, None):
        given = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": own}}
        assert template_arguments(given, NEW).get("enable_thinking") is own
    assert template_arguments({"reasoning_effort": "low"}, OLD) == {"reasoning_effort": "low"}


def test_tools_are_dumped_as_vllm_dumps_them() -> None:
    """In the order of its model's fields, which templates print in."""
    function: dict[str, Any] = {"x": 1, "strict": True, "parameters": {}, "name": "f"}
    [new] = template_arguments({"tools": [{"function": function, "y": 2, "defer_loading": False}]}, NEW)["tools"]
    known: dict[str, Any] = {"name": "f", "description": None, "parameters": {}, "strict": True, "defer_loading": False}
    assert json.dumps(new) == json.dumps({"type": "function", "function": known, "defer_loading": False})
    [old] = template_arguments({"tools": [{"function": function, "y": 2}]}, OLD)["tools"]
    # What vLLM does not declare comes after, as it was given.
    dumped: dict[str, Any] = {"name": "f", "description": None, "parameters": {}, "x": 1, "strict": True}
    assert json.dumps(old) == json.dumps({"type": "function", "function": dumped, "y": 2})
