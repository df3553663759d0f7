import pytest

pytest.register_assert_rewrite("docs.drivers")
