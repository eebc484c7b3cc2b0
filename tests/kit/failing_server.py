"""payagent with an HTTP server that fails when it starts to answer: `python -m kit.failing_server serve`."""

from payagent.api.http.server import Server
from payagent.cli import main


async def fail(*_args: object, **_options: object) -> None:
    raise OSError("the server failed")


if __name__ == "__main__":
    Server.startup = fail  # type: ignore[method-assign]
    main()
