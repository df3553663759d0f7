"""No file of the library is long. How complex a function may be is in the configuration of ruff."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST = 450


def test_no_file_is_long() -> None:
    """No file is longer."""
    kinds = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h"}
    files = [
        path
        for folder in ("src", "csrc")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in kinds
    ]
    assert files
    long = {str(path.relative_to(ROOT)) for path in files if len(path.read_text().splitlines()) > LONGEST}
    assert long == set()
