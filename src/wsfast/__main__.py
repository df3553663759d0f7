"""The command line: `python -m wsfast`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
