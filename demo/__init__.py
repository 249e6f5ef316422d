"""The whole stand on one machine without containers: environments, a model, vLLM on the CPU, the gateway, the client.

Everything here runs on the system's Python before anything is installed: the standard library only.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - older ones do get here, and this is what they should say
    sys.exit("Нужен Python 3.11 или новее. Укажите другой: make PYTHON=python3.12 demo")
