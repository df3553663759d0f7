"""The core that is in use: the extension, or its twin where that was not built or WSFAST_PURE=1."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

# An extension that is there and does not load is a broken installation, and its ImportError should be seen.
if (
    TYPE_CHECKING
    or os.environ.get("WSFAST_PURE", "0") not in ("", "0")
    or not importlib.util.find_spec(f"{__name__}._core")
):
    from . import _pure as core
else:
    try:
        from . import _core as core
    except ImportError as exc:
        exc.add_note("`WSFAST_PURE=1 wsfast doctor` looks at the whole installation.")
        raise

__all__ = ["core"]
