"""The C that is for benchmarks alone: the extension, or its twin where that was not built."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._native_py import drain, send_file_many, send_many
else:
    try:
        from ._native import drain, send_file_many, send_many
    except ModuleNotFoundError:
        from ._native_py import drain, send_file_many, send_many

__all__ = ["drain", "send_file_many", "send_many"]
