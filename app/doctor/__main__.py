"""`python -m app.doctor`: see `command`. This must run on any Python, or the person would see a traceback."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - the system's Python, whatever it is
    found = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write("Нужен Python 3.10 или новее, а это " + found + ". Попробуйте: make doctor PYTHON=python3.11\n")
    sys.exit(2)

from app.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
