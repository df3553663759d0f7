"""The core that is in use: the extension, or its twin where that is absent or WSFAST_PURE=1."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("WSFAST_PURE", "0") not in ("", "0"):
    from . import _core_py as core
else:
    try:
        from . import _core as core
    except ModuleNotFoundError:  # pragma: no cover - built without a compiler
        from . import _core_py as core

__all__ = ["core"]
