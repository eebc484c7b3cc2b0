"""sim: the real agent in a world made of a seed, where everything that can go wrong does, and a judge looks on.

One run is one thread on one event loop whose time is virtual. The agent, its store on a real SQLite file, its
coins, its transaction path, the reading of providers' answers, the proxy's clerk and the top-ups are the shipped
ones; what is made up is what they meet: clock, randomness, network, disk, the process's death, the chain with its
forks, providers, merchants, and an adversary that keeps every transaction that was ever released. A seed gives the
same run again, bit for bit.

May import: every room but the CLI and the daemon. Never: a thread, a real clock, real randomness, a socket; tells
the agent what only the world knows.
"""
