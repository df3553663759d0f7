"""Whether an sdist holds all that is tracked, and wheels hold the whole library, nothing else, and not too much of it.

Usage: contents.py SDIST TRACKED [WHEEL...], with TRACKED a file that `git ls-files` has written. A wheel's extension
may need the C library and nothing else, shows nothing but its init function, and is stripped.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path, PurePosixPath

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

SOURCES = {".pyx", ".pxd", ".pxi", ".c"}
NOT_IN_SDIST = (".ci/", ".github/")
MOST_FILES, MOST_BYTES = 128, 577_536
"""Of a wheel."""

# libpthread.so.0 where glibc is older than 2.34; ld-linux for _Thread_local.
LIBRARY = re.compile(r"libc\.so\.6|libpthread\.so\.0|libc\.musl-\w+\.so\.1|ld-linux-[\w-]+\.so\.\d")


def check_sdist(path: Path, tracked: list[str]) -> set[str]:
    """Return the names of the files in an sdist, relative to its root."""
    with tarfile.open(path) as archive:
        names = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])) for m in archive if m.isfile()}
    meant = [name for name in tracked if not name.startswith(NOT_IN_SDIST)]
    missing = sorted(set(meant) - names)
    assert not missing, f"{path.name} lacks {missing}"
    for folder in ("benchmarks/src", "csrc/tests", "docs/explanation", "examples", "src/wsfast", "tests/isolated"):
        assert any(name.startswith(f"{folder}/") for name in names), f"{path.name} has no {folder}"
    for name in ("CMakeLists.txt", "LICENSE", "Makefile", "PKG-INFO", "README.md", "pyproject.toml"):
        assert name in names, f"{path.name} has no {name}"
    compiled = sorted(name for name in names if name.endswith((".so", ".pyc", ".o")))
    assert not compiled, f"{path.name} has {compiled}"
    print(f"{path.name}: {len(names)} files, among them all {len(meant)} that are tracked and meant for it")
    return names


def check_wheel(path: Path, sdist: set[str]) -> None:
    """Compare the files in a wheel with those in the sdist, given by their names."""
    package = {name.removeprefix("src/") for name in sdist if name.startswith("src/wsfast/")}
    package = {name for name in package if PurePosixPath(name).suffix not in SOURCES}
    assert {"wsfast/py.typed", "wsfast/_core/_core.pyi"} <= package
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        infos = {name for name in names if name.split("/")[0].endswith(".dist-info")}
        extensions = {name for name in names if name.startswith("wsfast/_core/_core.") and name.endswith(".so")}
        (licenses,) = [name for name in infos if name.endswith("/LICENSE")]
        assert package <= names, f"{path.name} lacks {sorted(package - names)}"
        unexpected = names - package - infos - extensions
        assert not unexpected, f"{path.name} has {sorted(unexpected)}"
        pure = "-none-" in path.name
        assert len(extensions) == (not pure), f"{path.name} has the extensions {sorted(extensions)}"
        for name in extensions:
            check_extension(name, archive.read(name))
    size = path.stat().st_size
    assert len(names) <= MOST_FILES, f"{path.name} has {len(names)} files, more than {MOST_FILES}"
    assert size <= MOST_BYTES, f"{path.name} has {size} bytes, more than {MOST_BYTES}"
    print(f"{path.name}: {size} bytes, {len(names)} files, {sorted(extensions)}, {licenses}")


def check_extension(name: str, octets: bytes) -> None:
    """Look at what an extension needs and shows."""
    elf = ELFFile(BytesIO(octets))
    dynamic, symbols = elf.get_section_by_name(".dynamic"), elf.get_section_by_name(".dynsym")
    assert isinstance(dynamic, DynamicSection)
    assert isinstance(symbols, SymbolTableSection)
    assert elf.get_section_by_name(".symtab") is None, f"{name} is not stripped"
    needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
    assert all(map(LIBRARY.fullmatch, needed)), f"{name} needs {sorted(needed)}"
    defined = {symbol.name for symbol in symbols.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF" and symbol.name}
    defined -= {"_init", "_fini"}
    assert defined == {"PyInit__core"}, f"{name} shows {sorted(defined)}"


if __name__ == "__main__":
    tracked_files = Path(sys.argv[2]).read_text().splitlines()
    files = check_sdist(Path(sys.argv[1]), tracked_files)
    for wheel in sys.argv[3:]:
        check_wheel(Path(wheel), files)
