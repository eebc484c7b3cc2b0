"""The chain room: what payagent reads from chain providers, and how it combines their answers.

Start with `provider`, the port that the rest of payagent uses, then read in this order:
- `open` makes a provider by the kind that the config names.
- `blockfrost`, `koios` and `ogmios_kupo` implement the port, each with a module that reads its answers. `adapter`
  has what they share. `provider_client` makes the calls, `json_answers` says what an answer means, and
  `submit_answers` classifies the answers to submissions. `address_pages` makes a long read resumable.
- `throttled_provider` keeps a provider's limits (`circuit_breaker`).
- `provider_state` holds the facts about one provider. `quorum` decides which providers are believed, and
  `quorum_view` says what they show together (`quorum_rules`, `deadlines`, `disputes`).
- `address_history` reads the whole history of an address through the port.
Never: decides what happens to a payment, or treats a missing answer as "not found".
"""
