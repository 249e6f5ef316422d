"""The table of faults: in which ways each is played, and what becomes of a turn in either answer form."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from tests.faults.world import World
from tests.scripted_vllm import DONE, Act, Script, delta, event, refusal, stream_of, streamed, whole

HANG = 60.0
MEBIBYTE = b"x" * (1 << 20)
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Failure:
    """What a client sees of a turn that has failed.

    Attributes:
        kind: see app/errors.py.
        after: the timeout that ends it; None, where it fails at once.
        is_event: whether it is the last event of a stream that has begun.
    """

    status: int
    code: str
    kind: str
    after: Literal["connect", "idle", "total"] | None = None
    is_event: bool = False


@dataclass(frozen=True)
class Answer:
    """What a client sees of a turn that a fault does no harm.

    Attributes:
        reply: the whole of it.
        members: further ones of the answer.
        pieces: the events of a stream before `done`.
    """

    reply: str = "Да"
    members: dict[str, Any] = field(default_factory=dict)
    pieces: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True)
class Way:
    """One way in which a fault comes.

    Attributes:
        play: has it come with the next chat, or be there as long as its context.
        says: words of the problem's `detail`.
        helpful: further members of the problem.
        is_cut: whether the connection can serve no other turn.
        has_begun: whether a piece of the answer comes before.
        script: what vLLM answers, where that is all there is to it.
    """

    play: Callable[[World], AbstractContextManager[None]]
    says: str = ""
    helpful: dict[str, Any] = field(default_factory=dict)
    is_cut: bool = True
    has_begun: bool = False
    script: Script | None = None


@dataclass(frozen=True)
class Form:
    """A fault in one of the two answer forms."""

    sees: Failure | Answer
    ways: Mapping[str, Way]


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        name: for the test's name.
        title: as the documentation has it.
        json: what becomes of a JSON answer; None, where the fault cannot be.
        stream: what becomes of a stream.
    """

    name: str
    title: str
    json: Form | None
    stream: Form | None


def plays(script: Script, says: str = "", *, is_cut: bool = True, **helpful: Any) -> Way:
    """What vLLM answers."""

    def play(world: World) -> AbstractContextManager[None]:
        world.script.scripts.append(script)
        return nullcontext()

    return Way(play, says, helpful, is_cut, script=script)


def refuses(status: int, answer: str | bytes, says: str = "", *, header: str | None = None, **helpful: Any) -> Way:
    """An error in vLLM's words, or raw; `header` is Retry-After. It is whole: the connection may be used again."""
    headers = {} if header is None else {"Retry-After": header}
    script = refusal(status, answer) if isinstance(answer, str) else Script([answer], status=status)
    script.headers = headers
    return plays(script, says, is_cut=False, **helpful)


def stream(*acts: Act, is_cut: bool = True) -> Way:
    """Events of a stream."""
    way = plays(streamed(acts), is_cut=is_cut)
    return begun(way) if acts and isinstance(acts[0], bytes) and acts[0].startswith(BEGUN) else way


def open_stream(*acts: Act) -> Way:
    """Events of a stream, after which it would go on."""
    return stream(*acts, HANG)


def body(*acts: Act) -> Way:
    """A JSON answer that is whole."""
    return plays(Script(list(acts)), is_cut=False)


def raw(*parts: bytes | None) -> Way:
    """What comes from the network, whether HTTP or not."""

    def play(world: World) -> AbstractContextManager[None]:
        world.network.answers.append(parts)
        return nullcontext()

    return Way(play)


def begun(way: Way) -> Way:
    return replace(way, has_begun=True)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def both(name: str, title: str, sees: Failure | Answer, **ways: Way) -> Fault:
    """A fault that is the same in both forms."""
    return Fault(name, title, Form(sees, ways), Form(sees, ways))


def split(script: Script) -> Way:
    """Each byte on its own."""
    data = b"".join(act for act in script.acts if isinstance(act, bytes))
    script.acts = [bytes([byte]) for byte in data]
    return plays(script)


def merged(script: Script) -> Way:
    """All in one."""
    script.acts = [b"".join(act for act in script.acts if isinstance(act, bytes))]
    return plays(script)


def call(index: int, **members: Any) -> bytes:
    return delta(tool_calls=[{"index": index, **members}])


CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
]
BEGUN = delta(content="нача")
TRICKLE: list[Act] = [BEGUN, 0.1]
NO_JSON = b'{"choices": [], "x": ' + b"[" * 100_000
NO_UTF8 = b'{"choices": [{"message": {"content": "\xff"}, "delta": {"content": "\xff"}}]}'
NO_USAGE: dict[str, Any] = dict.fromkeys(("total_tokens", "input_tokens", "output_tokens"))

_UNAVAILABLE = Failure(503, "upstream_unavailable", "unavailable")
_BROKEN = Failure(502, "upstream_error", "broken")
_GARBAGE = Failure(502, "upstream_error", "garbage")
_HTTP = Failure(502, "upstream_error", "http_error")
_REJECTED = Failure(400, "upstream_rejected", "rejected")
_UNAUTHORIZED = Failure(401, "invalid_key", "unauthorized")
_RATE_LIMITED = Failure(429, "too_many_requests", "rate_limited")
_OUR_ERROR = Failure(502, "upstream_error", "error_event")
_BROKEN_EVENT = Failure(502, "upstream_error", "broken", is_event=True)
_GARBAGE_EVENT = Failure(502, "upstream_error", "garbage", is_event=True)
_ERROR_EVENT = Failure(502, "upstream_error", "error_event", is_event=True)
_TOTAL = Failure(504, "upstream_timeout", "timeout", "total")
_TOTAL_EVENT = Failure(504, "upstream_timeout", "timeout", "total", is_event=True)
_IDLE = Failure(504, "upstream_timeout", "timeout", "idle")
_IDLE_EVENT = Failure(504, "upstream_timeout", "timeout", "idle", is_event=True)

CONNECTION = [
    both("refused", "в соединении отказано", _UNAVAILABLE, down=Way(World.refusing, "docker compose logs vllm")),
    both("no name", "имени нет в DNS", _UNAVAILABLE, invalid=Way(World.nameless, "docker compose logs vllm")),
    both(
        "no connection",
        "на попытку соединиться нет никакого ответа",
        Failure(503, "upstream_unavailable", "unavailable", "connect"),
        unanswering=Way(World.unanswering),
    ),
    Fault(
        "no answer",
        "соединение принято, ответа нет",
        Form(_TOTAL, {"silent": raw(), "slow": plays(Script([], delay=HANG))}),
        Form(_IDLE, {"silent": raw(), "slow": plays(Script([], delay=HANG))}),
    ),
    Fault(
        "only headers",
        "пришли заголовки, дальше тишина",
        Form(_TOTAL, {"silent": plays(Script([HANG]))}),
        Form(_IDLE_EVENT, {"silent": open_stream()}),
    ),
    Fault(
        "silence in the middle",
        "ответ начался и замолчал",
        Form(_TOTAL, {"silent": plays(Script([b'{"choices": [{"mess', HANG]))}),
        Form(_IDLE_EVENT, {"silent": open_stream(BEGUN), "within an event": open_stream(BEGUN, b'data: {"choi')}),
    ),
    Fault(
        "endless",
        "ответ идёт, но не кончается",
        Form(_TOTAL, {"spaces": plays(Script([b" ", 0.1] * 600))}),
        Form(_TOTAL_EVENT, {"deltas": stream(*TRICKLE * 600)}),
    ),
    both("broken before", "соединение оборвано до ответа", _BROKEN, at_once=raw(None), head=raw(b"HTTP/1.1 2", None)),
    Fault(
        "broken",
        "соединение оборвано посреди ответа",
        Form(_BROKEN, {"at once": plays(Script([None])), "in JSON": plays(Script([b'{"choices": [{"mess', None]))}),
        Form(
            _BROKEN_EVENT,
            {
                "at once": stream(None),
                "between events": stream(BEGUN, 0.1, None),
                "within an event": stream(BEGUN, b'data: {"choi', 0.1, None),
                "after the text": stream(BEGUN, delta("stop"), 0.1, None),
            },
        ),
    ),
    both("no HTTP", "вместо ответа — не HTTP", _BROKEN, ssh=raw(b"SSH-2.0-OpenSSH_9.2\r\n")),
    Fault(
        "HTTP ends",
        "посреди ответа — не HTTP",
        Form(_BROKEN, {"no chunk": raw(CHUNKED % b"application/json" + chunk(b'{"choices"') + b"no size\r\n")}),
        Form(_BROKEN_EVENT, {"no chunk": begun(raw(CHUNKED % b"text/event-stream" + chunk(BEGUN), b"no size\r\n"))}),
    ),
]

ANSWERS = [
    Fault(
        "error within 200",
        "ошибка vLLM внутри ответа 200",
        Form(_OUR_ERROR, {"body": body(b'{"error": {"message": "engine died"}}')}),
        Form(
            _ERROR_EVENT,
            {
                "event": open_stream(BEGUN, event({"error": {"message": "engine died", "code": 500}}), DONE),
                "in one read": open_stream(BEGUN + delta(content="ло") + event({"error": {"message": "engine died"}})),
            },
        ),
    ),
    Fault(
        "no JSON",
        "ответ — не JSON",
        Form(
            _GARBAGE,
            {
                "a page": body(b"<html>it works</html>"),
                "empty": body(),
                "too deep": body(NO_JSON),
                "too deep an error": body(b'{"error": ' + b"[" * 100_000),
            },
        ),
        Form(
            _GARBAGE_EVENT,
            {
                "oops": open_stream(BEGUN, b"data: {oops\n\n"),
                "too deep": open_stream(b"data: " + NO_JSON + b"\n\n"),
                "no event": stream(b'{"choices": [{"message": {"content": "a"}}]}', is_cut=False),
            },
        ),
    ),
    Fault(
        "no UTF-8",
        "ответ — не UTF-8",
        Form(
            _GARBAGE,
            {"byte": body(NO_UTF8), "surrogate": body(rb'{"choices": [{"message": {"content": "\ud800"}}]}')},
        ),
        Form(_GARBAGE_EVENT, {"byte": open_stream(b"data: " + NO_UTF8 + b"\n\n")}),
    ),
    Fault(
        "another form",
        "ответ — JSON другого вида",
        Form(
            _GARBAGE,
            {
                "an array": body(b"[]"),
                "no choices": body(b'{"choices": []}'),
                "no message": body(b'{"choices": [{}]}'),
                "a number for a text": body(b'{"choices": [{"message": {"content": 5}}]}'),
                "a number beyond numbers": plays(
                    whole("да", usage={"prompt_tokens": 10**400, "total_tokens": 1}), is_cut=False
                ),
                "less than no tokens": plays(whole("да", usage={"prompt_tokens": -1, "total_tokens": 1}), is_cut=False),
            },
        ),
        Form(
            _GARBAGE_EVENT,
            {
                "an array": open_stream(BEGUN, event([])),
                "a number for a text": open_stream(delta(content=5)),
                "a number beyond numbers": open_stream(
                    BEGUN, event({"usage": {"prompt_tokens": 10**400, "total_tokens": 1}})
                ),
            },
        ),
    ),
    Fault(
        "no end",
        "ответ без `finish_reason`",
        Form(_GARBAGE, {"none": body(b'{"choices": [{"message": {"content": "a"}}]}')}),
        Form(
            _GARBAGE_EVENT,
            {
                "after a piece": stream(BEGUN, DONE, is_cut=False),
                "after a piece, no [DONE]": stream(BEGUN, is_cut=False),
                "only [DONE]": stream(DONE, is_cut=False),
                "at once": stream(is_cut=False),
            },
        ),
    ),
    Fault(
        "too large",
        "ответ больше 64 МиБ, в потоке — событие больше 1 МиБ",
        Form(_GARBAGE, {"65 MiB": plays(Script([b'{"choices": [{"message": {"content": "', *[MEBIBYTE] * 65, HANG]))}),
        Form(
            _GARBAGE_EVENT,
            {
                "a line of 64 MiB": open_stream(BEGUN, b"data: ", *[MEBIBYTE] * 64),
                "an endless event": open_stream(b"data: " + b"x" * 700_000, b"x" * 700_000),
                "a huge event": open_stream(delta(content="x" * 1_100_000)),
            },
        ),
    ),
    both(
        "the key stops working",
        "401, 403: ключ перестал действовать",
        _UNAUTHORIZED,
        unauthorized=refuses(401, "no", "VLLM_API_KEY"),
        as_vllm_says=refuses(401, b'{"error":"Unauthorized"}', "VLLM_API_KEY"),
        forbidden=refuses(403, "no", "VLLM_API_KEY"),
        broken=plays(Script([None], status=401), "VLLM_API_KEY"),
    ),
    both(
        "rejected",
        "400, 422: параметры отклонены",
        _REJECTED,
        bad_request=refuses(400, "top_p must be in (0, 1], got 7.0.", "top_p must be in"),
        unprocessable=refuses(422, "no", "no"),
        without_words=refuses(400, b'{"detail": "no"}', "HTTP 400"),
        too_deep=refuses(400, b"[" * 100_000, "HTTP 400"),
        broken=plays(Script([b'{"error": {"mess', 0.1, None], status=400), "HTTP 400"),
    ),
    both(
        "rate limited",
        "429",
        _RATE_LIMITED,
        seconds=refuses(429, "slow down", header="7", retry_after=7),
        without=refuses(429, "slow down", retry_after=1),
        no_number=refuses(429, "slow down", header="soon", retry_after=1),
    ),
    both(
        "500",
        "500",
        _HTTP,
        engine=refuses(500, "engine died", "ошибкой 500"),
        page=refuses(500, b"<html>", "500"),
        array=refuses(500, b"[]", "500"),
        silent=plays(Script([HANG], status=500), "500"),
        endless=plays(Script([MEBIBYTE] * 1000, status=500), "500"),
    ),
    both("503", "503", _HTTP, busy=refuses(503, "busy", "503")),
    both(
        "unexpected status",
        "404 и другие коды",
        _HTTP,
        no_model=refuses(404, "The model `x` does not exist.", "does not exist"),
        no_path=refuses(404, b'{"detail": "Not Found"}', "VLLM_BASE_URL"),
        moved=refuses(302, "там", "302"),
        nothing=plays(Script([], status=204), "204", is_cut=False),
    ),
]

_YES = (("delta", "Да"),)
_PIECES = (("delta", "При"), ("delta", "вет"), ("delta", "!"))

HARMLESS = [
    Fault(
        "many packets",
        "событие разбито на много пакетов",
        Form(Answer("Привет!"), {"bytes": split(whole("Привет!"))}),
        Form(Answer("Привет!", pieces=_PIECES), {"bytes": split(stream_of("При", "вет", "!"))}),
    ),
    Fault(
        "one packet",
        "много событий в одном пакете",
        None,
        Form(Answer("Привет!", pieces=_PIECES), {"all": merged(stream_of("При", "вет", "!"))}),
    ),
    Fault(
        "no usage",
        "нет `usage`",
        Form(Answer(members=NO_USAGE), {"none": plays(whole("Да", usage=None))}),
        Form(Answer(members=NO_USAGE, pieces=_YES), {"none": plays(stream_of("Да", usage=None))}),
    ),
    Fault(
        "no [DONE]",
        "нет `[DONE]`",
        None,
        Form(
            Answer(pieces=_YES),
            {
                "ended": plays(streamed([delta("stop", content="Да")])),
                "ended after usage": plays(streamed(stream_of("Да").acts[:-1])),
            },
        ),
    ),
    Fault(
        "after [DONE]",
        "после `[DONE]` что-то ещё",
        None,
        Form(
            Answer(pieces=_YES),
            {
                "not closed": open_stream(*stream_of("Да").acts),
                "an event": merged(streamed([*stream_of("Да").acts, delta(content="!")])),
            },
        ),
    ),
    Fault(
        "unknown fields",
        "незнакомые поля",
        Form(Answer(), {"some": plays(whole("Да", new={"a": [1]}))}),
        Form(
            Answer(pieces=_YES),
            {
                "some": plays(
                    streamed(
                        [
                            event({"choices": [], "new": {"a": [1]}}),
                            *stream_of(
                                "Да",
                            ).acts,
                        ]
                    )
                )
            },
        ),
    ),
    *(
        Fault(
            name,
            f"`{name}`",
            Form(Answer(members={"reasoning": "Хм"}), {"thought": plays(whole("Да", **{name: "Хм"}))}),
            Form(
                Answer(members={"reasoning": "Хм"}, pieces=(("reasoning", "Хм"), *_YES)),
                {"thought": plays(streamed([delta(**{name: "Хм"}), *stream_of("Да").acts]))},
            ),
        )
        for name in ("reasoning", "reasoning_content")
    ),
    Fault(
        "tool calls",
        "вызов инструмента по частям",
        Form(
            Answer("", {"tool_calls": CALLS, "finish_reason": "tool_calls"}),
            {"whole": plays(whole(None, tool_calls=CALLS, finish_reason="tool_calls"))},
        ),
        Form(
            Answer("", {"tool_calls": CALLS, "finish_reason": "tool_calls"}, pieces=()),
            {
                "pieces": plays(
                    streamed(
                        [
                            call(0, id="call_1", type="function", function={"name": "f", "arguments": ""}),
                            call(0, function={"arguments": '{"a"'}),
                            call(1, id="call_2", type="function", function={"name": "g", "arguments": "{}"}),
                            call(0, function={"arguments": ":1}"}),
                            delta("tool_calls"),
                            DONE,
                        ]
                    )
                )
            },
        ),
    ),
]

FAULTS = [*CONNECTION, *ANSWERS, *HARMLESS]


def played(of: type[Failure | Answer]) -> list[Any]:
    """All ways of the faults that fail a turn, or of those that do not: arguments `form`, `way` and `stream`."""
    return [
        pytest.param(form, way, form is fault.stream, id=f"{fault.name}-{name}-{form_name}")
        for fault in FAULTS
        for form_name, form in (("JSON", fault.json), ("stream", fault.stream))
        if form is not None and isinstance(form.sees, of)
        for name, way in form.ways.items()
    ]
