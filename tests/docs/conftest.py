"""The tests of the site need the site: `make docs` builds it, and runs them."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("WSFAST_TEST_SITE") else ["test_site.py"]
