"""`python -m app.doctor`: see `command`. Nothing here may need a newer Python, or the person would see its traceback."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - the system's Python, whatever it is
    sys.stderr.write(
        "Нужен Python 3.10 или новее, а это %d.%d. Попробуйте: make doctor PYTHON=python3.11\n" % sys.version_info[:2]
    )
    sys.exit(2)

from app.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
