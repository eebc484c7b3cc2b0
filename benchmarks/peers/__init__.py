"""Other builders of transactions at the same work, each a program of its own that speaks lines of JSON.

Standard input is one job, as `benchmarks.building.job` makes it: the coins, the outputs, where change goes, the
key, the last slot, the protocol parameters, and how often and how long to repeat. Standard output is three lines:
`{"ready": versions}` when the peer's own objects for the coins stand, which is not timed; `{"built": ms}` after a
first build, which warms it up; `{"ms": [...], "tx": hex}` when all is done. `{"error": text}` may stand for any.
A build goes from coins and outputs to signed bytes. May import: the peer. Never: payagent.

package.json holds `cbor-extract`, an optional part of one, at 2.2.2: 2.2.3 asks for packages that npm may lack.
"""
