"""Bad inputs as they stand on the wire, by what they are put into."""

import json
from collections.abc import Iterator, Mapping

LONG_NUMBER = "9" * 5000
_DEEP = 100_000

# JSON values that are no string, or no JSON.
NO_TEXT = [
    *("true", "false", "0", "-0", "1.5", "1e400", "NaN", "Infinity", "-Infinity", str(10**30), LONG_NUMBER, "[]", "{}"),
    *('["x"]', '{"x": "y"}', "[null]", "[" * _DEEP, "[" * _DEEP + "]" * _DEEP, '{"x":' * _DEEP, "", "nul", "'x'", "01"),
    *(
        '"',
        '"\\x"',
        '"\\u12"',
        '"\n"',
        '"\0"',
        '"\t"',
        '"a" "b"',
        '"a",',
        "undefined",
        "0x10",
        "+1",
        ".5",
        "--1",
        "1_0",
    ),
]
LONE_SURROGATES = [r'"\ud800"', r'"\udc00 x"', r'"x\ud83d"', r'"\ude00\ud83d"']
NO_SESSION = [
    *(
        "",
        " ",
        "x",
        "\0",
        "%00",
        "null",
        "None",
        "0",
        "../../etc/passwd",
        "'; DROP TABLE sessions; --",
        "${jndi:ldap://x}",
    ),
    *("00000000-0000-4000-8000-000000000000", "ё" * 300, "x" * 100_000, "😀", "\u202e", "\ufeff", "{{7*7}}", "*", "?"),
]
NO_COUNT = [
    *("null", "0", "-0", "-1", str(-(10**30)), LONG_NUMBER, f"-{LONG_NUMBER}", "1.5", "1e400", "-1e400", "NaN"),
    *("Infinity", "true", '"5"', '""', "[]", "[1]", "{}", "", "0x10", "[" * _DEEP, "1e-400", "01", "5.", "1e"),
]
NO_TEMPERATURE = [
    *("-0.1", "2.0001", "-1", "3", str(10**30), LONG_NUMBER, "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "true"),
    *('"0"', '""', "[]", "[0]", "{}", "", ".5", "1.", "[" * _DEEP),
]
NO_FLAG = ["null", "0", "1", "1.0", '"true"', '""', "[]", "{}", "", "True", "[" * _DEEP, LONG_NUMBER, "NaN"]
NO_EXTRA = [
    *("true", "0", "1.5", "NaN", '"x"', '""', "[]", '[{"seed": 1}]', "", "{", '{"seed"}', '{"seed": }', "{1: 2}"),
    *(f'{{"seed": {number}}}' for number in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", LONG_NUMBER)),
    *(f'{{"seed": {text}}}' for text in LONE_SURROGATES),
    *(f"{{{text}: 1}}" for text in LONE_SURROGATES),
    *(f'{{"tools": {deep}}}' for deep in ("[" * _DEEP + "]" * _DEEP, '{"x":' * _DEEP + "1" + "}" * _DEEP, "[" * _DEEP)),
    *(f'{{"{name}": 1}}' for name in ("messages", "model", "stream", "n", "max_tokens", "chat_template", "echo")),
    *(f'{{"{name}": 1}}' for name in ("", " ", r"\u0000", "nothing", "ё" * 100_000, "__proto__", "__class__", "Seed")),
    *(f'{{"chat_template_kwargs": {{"{name}": 1}}}}' for name in ("tools", "padding", "conversation", "tokenize")),
]
NO_HISTORY = [
    *("true", "0", '"x"', "{}", "NaN", "", "[1]", "[null]", "[[]]", '["user"]', "[{}]", "[" * _DEEP, LONG_NUMBER),
    *(
        json.dumps(messages)
        for messages in (
            [{"role": "user", "content": "?"}],
            [{"role": "assistant", "content": "!"}],
            [{"role": "system", "content": "!"}],
            [{"role": "tool", "content": "!"}, {"role": "assistant", "content": "!"}],
            [{"role": "user", "content": ""}, {"role": "assistant", "content": "!"}],
            [{"role": "user", "content": None}, {"role": "assistant", "content": "!"}],
            [{"role": "user", "content": [{"type": "text", "text": "?"}]}, {"role": "assistant", "content": "!"}],
            [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "!"}],
            [{"role": "\ud800", "content": "?"}, {"role": "assistant", "content": "!"}],
            [{"role": "user", "content": "?", "name": "x"}, {"role": "assistant", "content": "!"}],
            [{"role": "user", "content": "?", "dropped": 1}, {"role": "assistant", "content": "!"}],
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "finish_reason": 5}],
            [{"role": 5, "content": "?"}, {"role": "assistant", "content": "!"}],
        )
    ),
]

_TEXT = [*NO_TEXT, "null", *LONE_SURROGATES]
BAD_FIELDS: Mapping[str, Mapping[str, list[str]]] = {
    "/init_session": {
        "vllm_api_key": [*_TEXT, '""', '" "', '"ключ"', r'"a\nb"', r'"a\u0000b"', '"wrong"', json.dumps("x" * 100_000)],
        "system_prompt": [*NO_TEXT, *LONE_SURROGATES],
        "history": NO_HISTORY,
    },
    "/set_system_prompt": {"system_prompt": _TEXT},
    "/chat": {
        "message": [*_TEXT, '""', json.dumps("слово " * 20_000)],
        "max_tokens": [*NO_COUNT, str(10**30), "9" * 4000, "8192"],
        "temperature": NO_TEMPERATURE,
        "stream": NO_FLAG,
        "extra": NO_EXTRA,
    },
}
ENDPOINTS = "/init_session /set_system_prompt /chat /history /cancel /undo /reset /stop_session".split()

BAD_BODIES = [
    *(
        b"",
        b" ",
        b"\0",
        b"{",
        b"}",
        b"[]",
        b"[{}]",
        b"null",
        b"true",
        b"0",
        b"NaN",
        b'"x"',
        b"{}",
        b"{}{}",
        b"{},",
        b"{\0}",
    ),
    *(b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b'{"\xff": 1}', b'{"session_id": "\xff"}', b'{"session_id": "\xc0\x80"}'),
    *(b'{"session_id": "\xed\xa0\x80"}', b"[" * _DEEP, b'{"a":' * _DEEP, b"[" * _DEEP + b"]" * _DEEP, b"9" * 5000),
    *(b"session_id=x", b"<session_id>x</session_id>", b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n"),
    *('{"session_id": "x"}'.encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-32-be")),
    *(
        b"{'session_id': 'x'}",
        b'{"session_id": "x",}',
        b'{session_id: "x"}',
        b'// x\n{"session_id": "x"}',
        b"\x1f\x8b\x08\0",
    ),
]
BAD_CONTENT_TYPES = [
    *(None, "", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
    *("application/jsonx", "application/problem+json", "application/json-patch+json", "json", "*/*", "charset=utf-8"),
    *("application/json,text/plain", "; application/json", "application /json", "text/plain; application/json"),
]


def wire(fields: Mapping[str, str]) -> bytes:
    """An object of values that are JSON already, or are not."""
    members = (f"{json.dumps(name)}: {value}" for name, value in fields.items())
    return ("{" + ", ".join(members) + "}").encode("utf-8", "surrogatepass")


def near_ids(session_id: str) -> Iterator[str]:
    """What is nearly the id of a session."""
    yield from (session_id[:-1], session_id[1:], session_id + " ", " " + session_id, session_id + "\0", session_id * 2)
    yield from (session_id.upper(), session_id.replace("-", ""), f"urn:uuid:{session_id}", f"{{{session_id}}}")
