"""`python -m kit.fleet_stopped URL`: a daemon that takes the account 0 and is paused inside the gate.

Once it is woken it prints how its commit ended, how the next one for the account did, and which accounts it lost.
"""

import os
import signal
import sys

from kit.fleet import daemon_on
from payagent.core.problems import Refused


def pause_at(name: str) -> None:
    if name == "before in the gate":
        os.kill(os.getpid(), signal.SIGSTOP)


def main(url: str) -> None:
    with daemon_on(url, "stopped", pause_at) as daemon:
        daemon.take([0], 0)
        for text in ("in the gate", "next"):
            try:
                daemon.note(text, account=0)
            except Refused as refused:
                print(refused.code)
        print(daemon.lost)


if __name__ == "__main__":
    main(sys.argv[1])
