"""Starts the signer in a child process whose memory was never readable, and waits for it to end.

Until a new process forbids it, its user can trace it and open its memory, and a memory once opened stays open. So
the launcher forbids it and then forks. The child's memory is new and was protected from the start. The child is
the signer. It ends with the launcher, and the launcher ends with the daemon, so the launcher stays alive.

Never: reads a secret.
"""

import os
import signal
import sys

from payagent.signer.hardening import before_the_secret, require_parent, require_untraced

_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Serve the socket on standard input in a child. `sys.argv[2]` is the daemon's pid. Errors go to stderr."""
    before_the_secret()
    require_parent(int(sys.argv[2]))
    own_pid = os.getpid()
    for number in _TERMINAL_SIGNALS:  # before a prompt: ending it would leave the terminal without echo
        signal.signal(number, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the starting daemon has blocked it
        before_the_secret()
        require_parent(own_pid)
        require_untraced()
        from payagent.signer.process import main as serve

        serve()
    _wait_for(child)


def _wait_for(child: int) -> None:
    """Wait for the child. Pass SIGTERM on as SIGINT, which ends a passphrase prompt."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGINT))
    null = os.open(os.devnull, os.O_RDWR)
    for handle in range(3):
        os.dup2(null, handle)
    os.waitpid(child, 0)
    os._exit(0)
