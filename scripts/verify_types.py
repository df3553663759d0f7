"""Whether every public name of the package has a type, as pyright sees an installation of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "wsfast"


def main() -> int:
    """Have pyright look at a copy in a virtual environment, since it does not follow editable installations."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": folder}))
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        shutil.copytree(SOURCE, packages / "wsfast", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "pyright", "--verifytypes", "wsfast", "--ignoreexternal"]
        environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "VIRTUAL_ENV": folder}
        # From elsewhere, so that the configuration of the project is not read.
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
        output = run.stdout
    complete = re.search(r"Type completeness score: 100%", output) is not None
    print(output if not complete else "every public name has a type")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
