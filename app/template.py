"""A model's chat template, rendered as vLLM renders it."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from app.context import ChatMessage, Pair, conversation
from app.errors import UpstreamRejected
from app.pattern import TalkPattern
from app.vllm import RequestSchema

TEMPLATE_PARAMETERS = frozenset(
    name
    for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
)
"""Names that transformers takes for its own parameters, wherever they come from."""

# What evaluating a template over well-formed messages can raise; jinja passes Python's own errors through.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_DICT_ATTRIBUTES = frozenset(dir(dict))
_UNSET = (None, "auto")

_SYSTEM = "probe-system"
_PAIR = Pair.of("probe-question", "probe-reply", None)
_MESSAGE = "probe-message"
_NAMES = {_PAIR.user: "прежние вопросы", _PAIR.assistant: "прежние ответы", _MESSAGE: "новое сообщение"}


class ChatTemplate:
    """How a conversation becomes the text that the model reads.

    Attributes:
        folds_system_prompt: a system message would be refused or lost, so the prompt goes before the first question.
        warnings: what the model will not see of a conversation, in Russian.
        pattern: what it makes of talks without further arguments, as far as that could be learnt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Take the template of a model and try out what it does with a conversation.

        Raises:
            UpstreamRejected: the template is no template, or refuses even a single message.
            LookupError: there is no template.
        """
        plain, with_tools = _sources(tokenizer, folder)
        try:
            self._plain = _Renderer(plain, tokenizer.special_tokens_map)
            self._with_tools = self._plain
            if with_tools != plain:
                self._with_tools = _Renderer(with_tools, tokenizer.special_tokens_map)
        except jinja2.TemplateError as exc:
            raise UpstreamRejected(f"В нём ошибка: {one_line(exc)}") from exc
        self.folds_system_prompt = False
        self.warnings: list[str] = []
        self.pattern: TalkPattern | None = None
        self._try_out()
        if not self._plain.takes_parts:
            self.pattern = TalkPattern(self._plain.tree, lambda messages: self.render(messages, {}))

    def render(self, messages: Sequence[ChatMessage], arguments: Mapping[str, Any]) -> str:
        """The text of messages, oldest first, generation prompt included.

        Args:
            messages: as they are sent to vLLM.
            arguments: see `template_arguments`.

        Raises:
            UpstreamRejected: the template refuses these messages, as vLLM's will.
        """
        if not arguments and self.pattern is not None:
            text = self.pattern.render(messages)
            if text is not None:
                return text
        renderer = self._plain if arguments.get("tools") is None else self._with_tools
        try:
            return renderer.render(messages, arguments)
        except _RENDER_ERRORS as exc:
            raise UpstreamRejected(f"Шаблон чата модели не принимает эти сообщения: {one_line(exc)}") from exc

    def _try_out(self) -> None:
        """Talk to the template: what raises or is not in the text is known before anybody's first message."""
        lost: list[str] = []
        for pairs in ([], [_PAIR]):
            try:
                text = self.render(conversation("", pairs, _MESSAGE), {})
            except UpstreamRejected as exc:
                if not pairs:
                    raise
                self.warnings.append(f"Разговор с этой моделью не продолжить дальше первого сообщения. {exc.detail}")
                break
            said = [_MESSAGE, *(said for pair in pairs for said in (pair.user, pair.assistant))]
            lost += [_NAMES[one] for one in said if one not in text and _NAMES[one] not in lost]
            if not self.folds_system_prompt:
                self._try_out_system_prompt(pairs)
        if lost:
            self.warnings.append(f"Шаблон чата молча выбрасывает {' и '.join(lost)}: модель этого не увидит")

    def _try_out_system_prompt(self, pairs: Sequence[Pair]) -> None:
        try:
            self.folds_system_prompt = _SYSTEM not in self.render(conversation(_SYSTEM, pairs, _MESSAGE), {})
        except UpstreamRejected:
            self.folds_system_prompt = True
        else:
            if self.folds_system_prompt:
                self.warnings.append(
                    "Шаблон чата молча выбрасывает системное сообщение, поэтому системный промпт идёт в начале первого "
                    "сообщения пользователя"
                )


class _Renderer:
    """One template, compiled; it may be given the contents of messages as text or as lists of parts.

    Attributes:
        tree: its syntax.
        takes_parts: it is given lists of parts.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self._template = _compile(source)
        self.tree = self._template.environment.parse(source)
        self._special_tokens = special_tokens
        self.takes_parts = False
        self.takes_parts = self._finds_text_in_parts()

    def render(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> str:
        """As `apply_chat_template` of transformers does, without its checks of what is right here."""
        if self.takes_parts:
            messages = [_in_parts(message) for message in messages]
        given = {"tools": None, "documents": None, **self._special_tokens, **arguments}
        return self._template.render(messages=messages, add_generation_prompt=True, **given)

    def _finds_text_in_parts(self) -> bool:
        """Whether the template looks for texts in lists, so that vLLM gives it lists.

        vLLM decides so from the template's syntax tree: a loop over a message's content, which its versions look for in
        different places (vllm/renderers/hf.py, `_detect_content_format`). Trying it out comes to the same text with the
        templates of published models; where it did not, the comparison with vLLM would tell.
        """
        messages = conversation("", [_PAIR], _MESSAGE)
        try:
            text = self.render([_in_parts(message) for message in messages], {})
        except _RENDER_ERRORS:
            return False
        return _MESSAGE in text and "'type'" not in text and '"type"' not in text


class _QuickSandbox(ImmutableSandboxedEnvironment):
    """The sandbox, twice as quick where templates spend their time: `message.role`, `ns.flag` and `loop.last`.

    None of them needs what the sandbox looks into at every access: a plain dict has no such attribute, so it is always
    the key that is meant; a namespace holds what the template itself has put there, a loop its own state.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See jinja2.sandbox.SandboxedEnvironment."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        if (kind is Namespace or kind is LoopContext) and not attribute.startswith("_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return super().getattr(obj, attribute)


def _compile(source: str) -> jinja2.Template:
    """Compile in the environment that transformers sets up for templates, with quicker look-ups."""
    environment: jinja2.Environment = _compile_jinja_template(source).environment.overlay()
    environment.__class__ = _QuickSandbox
    return environment.from_string(source)


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _sources(tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[str, str]:
    """The templates for requests without and with tools, as vLLM picks them (vllm/renderers/hf.py).

    Raises:
        LookupError: there is none.
    """
    processors = _processors_template(folder)
    try:
        return processors or tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[])
    except ValueError:  # the tokenizer has none, or several and no default
        if processors is None:
            raise LookupError from None
        return processors, processors


def _processors_template(folder: Path) -> str | None:
    """The template of a model that also takes pictures; only older ones keep it apart from the tokenizer's."""
    own = folder / "chat_template.json"
    if (folder / "chat_template.jinja").exists() or not own.exists():
        return None
    if not any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
        return None
    try:
        return str(json.loads(own.read_text(encoding="utf-8"))["chat_template"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def template_arguments(extra: Mapping[str, Any], schema: RequestSchema) -> dict[str, Any]:
    """What of a request to vLLM its chat template is given.

    As vLLM does (vllm/entrypoints/openai/chat_completion/protocol.py, `build_chat_params`; vllm/renderers/params.py,
    `merge_kwargs`): null and "auto" are as good as absent, and an effort also sets `enable_thinking` unless given.
    """
    given = extra.get("chat_template_kwargs")
    given = given if isinstance(given, dict) else {}
    arguments = dict(given)
    effort = extra.get("reasoning_effort")
    if effort is not None:
        arguments["reasoning_effort"] = effort
        if schema.effort_sets_thinking and "enable_thinking" not in given:
            arguments["enable_thinking"] = effort != "none"
    if extra.get("documents") is not None:
        arguments["documents"] = extra["documents"]
    tools = extra.get("tools")
    if isinstance(tools, list):
        arguments["tools"] = [_tool_as_vllm_dumps_it(tool, schema) for tool in tools]
    return {name: value for name, value in arguments.items() if value not in _UNSET}


def _tool_as_vllm_dumps_it(tool: Any, schema: RequestSchema) -> object:
    """As vLLM's own model of a tool: an absent description becomes null, what it does not know goes.

    What vLLM will refuse stays as it is. (vllm/entrypoints/generate/base/protocol.py, `FunctionDefinition`)
    """
    match tool:
        case {"function": {"name": _} as function}:
            declared = {name: function.get(name) for name in ("name", "description", "parameters")}
        case _:
            return tool
    if not schema.knows_strict_tools:
        return {"type": "function", **tool, "function": {**declared, **function}}
    deferred = {"defer_loading": tool["defer_loading"]} if tool.get("defer_loading") is not None else {}
    inherited = {**deferred, **function}
    optional = {name: inherited[name] for name in ("strict", "defer_loading") if inherited.get(name) is not None}
    return {"type": "function", "function": {**declared, **optional}, **deferred}


def one_line(exc: BaseException) -> str:
    """What an exception says, short enough for an error's detail."""
    return " ".join(str(exc).split())[:300]
