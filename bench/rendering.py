"""What showing a reply as Markdown while it comes costs: `python -m bench.rendering [PIECES_PER_SECOND]`.

A reply comes in pieces of four characters. `once` is the processor time of rich rendering all of it as Markdown at its
end, `live` that of showing it as it comes, and `core` the share of a processor that this takes. `wait` is the longest
that a piece had to wait for the screen.
"""

import argparse
import io
import time

from rich.console import Console
from rich.markdown import Markdown

from client.live import reply_on

WIDTH, HEIGHT = 100, 40
SENTENCE = "Кэш **хранит** то, что `дорого` считать, и *отдаёт* это по [ключу](https://example.org). "
ITEM = "{}. Пункт **важный**: " + SENTENCE + "\n   - под ним `ещё один`\n"
CODE = "def square_{0}(x: int) -> int:\n    return x * x + {0}  # всё ещё дёшево\n\n\n"
REPLIES = {
    "paragraphs": f"## Глава\n\n{SENTENCE * 6}\n\n" * 180,
    "one list": "".join(ITEM.format(number) for number in range(1, 700)),
    "a table of 1000 rows": "| № | Что | Зачем |\n|--|--|--|\n"
    + "".join(f"| {n} | `f{n}` | **так** надо |\n" * 4 for n in range(250)),
    "code of 1000 lines": "```python\n" + "".join(CODE.format(number) for number in range(250)) + "```\n",
    "one paragraph": SENTENCE * 1100,
}


def main() -> None:
    """Print one row per kind of reply."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rate", nargs="?", type=float, default=1000, metavar="PIECES_PER_SECOND")
    rate = parser.parse_args().rate
    print(f"{'seconds':<24}    KB     once     live    ratio     core     wait")
    for name, text in REPLIES.items():
        console = Console(file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT, color_system="256")
        started = time.process_time()
        console.print(Markdown(text))
        once = time.process_time() - started
        started, began, wait = time.process_time(), time.monotonic(), 0.0
        with reply_on(console, "") as reply:
            for place in range(0, len(text), 4):
                time.sleep(max(0.0, began + place / 4 / rate - time.monotonic()))
                said = time.monotonic()
                reply.say(text[place : place + 4])
                wait = max(wait, time.monotonic() - said)
        live, passed = time.process_time() - started, time.monotonic() - began
        kilobytes = len(text.encode()) / 1000
        print(
            f"{name:<24} {kilobytes:5.0f} {once:8.2f} {live:8.2f} {live / once:8.1f} {live / passed:8.0%} {wait:8.2f}"
        )


if __name__ == "__main__":
    main()
