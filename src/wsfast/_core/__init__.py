"""Chooses the core: the C extension, or the pure-Python core if the extension was not built or WSFAST_PURE=1 is set."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

# If the extension exists but does not load, the installation is broken, and the user should see the ImportError.
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
        exc.add_note("Run `WSFAST_PURE=1 wsfast doctor` to check the whole installation.")
        raise

__all__ = ["core"]
