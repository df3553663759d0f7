"""Tell what this machine lacks to build wsfast, and which packages of Debian have it.

Any Python 3 can run it, so that one that is too old is told so.
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec


def main() -> int:
    """Print what is missing; the exit status is 1 if there is any."""
    version = "{}.{}".format(*sys.version_info)
    if sys.version_info < (3, 11):  # noqa: UP036
        print(f"wsfast needs Python 3.11 or later, and this is {version}. Name another one: make PYTHON=python3.12")
        return 1
    missing = {}
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        missing[f"python{version}-venv"] = "Python's modules venv and ensurepip"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing[f"python{version}-dev"] = "Python's headers"
    if not any(map(shutil.which, ((os.environ.get("CC") or "cc").split()[0], "cc", "gcc", "clang"))):
        missing["gcc libc6-dev"] = "a C compiler"
    if missing:
        print(f"This machine lacks {', '.join(missing.values())} ({sys.executable}).")
        print(f"On Debian and Ubuntu: sudo apt install {' '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
