"""The first program of the signer: makes a process whose memory nobody could ever read, and waits for its end.

A process that starts can be traced and its memory opened by its own user until it says no, and what was opened
then stays open. So this one says no and forks: the child's memory is new, and was closed from its first moment. It
is the signer; this one holds nothing, and stays only because the child is to end with it, and it with the daemon.
May import: the standard library, `confine`, and `process` in the child. Never: reads a secret.
"""

import os
import signal
import sys

from payagent.signer.hardening import before_the_secret, require_parent, require_untraced

_OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Serve the line on standard input in a child; `sys.argv[2]` is the daemon. What fails is told on stderr."""
    before_the_secret()
    require_parent(int(sys.argv[2]))
    ours = os.getpid()
    for number in _OF_A_TERMINAL:  # before there is a question whose end would leave the terminal without an echo
        signal.signal(number, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the daemon that starts has blocked it
        before_the_secret()
        require_parent(ours)
        require_untraced()
        from payagent.signer.process import main as serve

        serve()
    _wait_for(child)


def _wait_for(child: int) -> None:
    """SIGTERM is passed on as Ctrl-C, which ends a question for the passphrase; a terminal sends that itself."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGINT))
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in range(3):
        os.dup2(nothing, handle)
    os.waitpid(child, 0)
    os._exit(0)
