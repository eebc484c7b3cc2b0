"""Helpers that several test files share. A test imports from here, and never from another test.

agent, payments, handover, external_spends, providers, prepaid, merchants, upkeep, x402
                                    the real agent on a devnet, and what its tests do and check
api, api_operations, event_stream   the running API
proxy, client, sdk_merchant, typescript_seller
                                    a raw merchant, the proxy, paying programs, merchants of the x402 SDKs
daemon, forks, cli, terminal, webhook
                                    the daemon and the command as processes, a terminal, a receiver of news
push_services, telegram             fakes of the services that bring news to people
audit, backup, crash, simulation    ledgers with a history, backups, a process that dies, the simulator
devnet, wallet, certificates, http  a wallet on the devnet, random wallets, certificates, HTTP clients
hostile_402s, hostile_x402, dialect_examples, x402_examples, commitments, retry_answers
                                    402s and answers to a retry
blockfrost_rows, submit_answers, signer_bodies, bent_transactions
                                    tables of a provider's answers and of transactions
canaries, effort, event_loop, pages planted secrets, sample sizes, waiting tasks, code blocks of the docs
channel_rows                        channels in the ledger
"""
