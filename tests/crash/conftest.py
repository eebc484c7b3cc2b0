"""What the kit asserts is told in full."""

import pytest

pytest.register_assert_rewrite("crash.crash_kit")
