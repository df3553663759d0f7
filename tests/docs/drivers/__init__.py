"""What runs the blocks of code of pages, a module for each page. The drivers of other pages are in test_docs.py."""

from __future__ import annotations

import importlib
import pkgutil

__all__ = ["load"]


def load() -> None:
    """Have all drivers registered."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
