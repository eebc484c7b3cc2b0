"""The stage that runs are set on."""

import pytest
import structlog

from sim.run import run_share


def test_what_else_the_process_says_is_heard_again_after_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_share(range(1))
    structlog.get_logger().warning("said.after")
    assert "said.after" in capsys.readouterr().out
