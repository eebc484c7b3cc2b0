"""sim: runs the real agent in a simulated world that a seed defines, injects faults, and checks invariants.

Start at `world`, which is one run, and `judge`, which has the invariants. One run is one thread on one event loop
with virtual time. The shipped code runs unchanged: the agent, its store on a real SQLite file, its UTxO and
transaction handling, the parsing of providers' answers, the proxy's payer and the top-ups. The rest is simulated:
clock, randomness, network, disk, process death, the chain with its forks, providers and merchants. An adversary
keeps every transaction that was ever released. The same seed gives the same run, bit for bit.
`fleet_world` has several daemons over one ledger.

Never: uses a thread, a real clock, real randomness or a socket; tells the agent what only the world knows.
"""
