"""The stage that sets up a simulated run and puts logging back afterwards."""

import pytest
import structlog

from sim.run import run_share


def test_logging_works_again_after_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_share(range(1))
    structlog.get_logger().warning("said.after")
    assert "said.after" in capsys.readouterr().out
