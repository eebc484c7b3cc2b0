"""Reading a long history from a provider that is down for a while, without giving up what was already read."""

import pytest

from payagent.chain import address_history as history
from payagent.chain.address_history import History, read_history
from payagent.chain.provider import AddressTx, BlockSeen, ChainUtxo, Found, Movement, Read, Unknown

TIP = BlockSeen(9, 9, "aa" * 32, 9)


class Provider:
    """Answers a number of movement requests, then is down until time passes."""

    def __init__(self, count: int, answers: int, away_s: float) -> None:
        self.count, self.answers, self.away_s = count, answers, away_s

    async def sleep(self, seconds: float) -> None:
        if not self.answers:
            self.away_s -= seconds
            self.answers = 10**6 if self.away_s <= 0 else 0

    async def tip(self) -> Read[BlockSeen]:
        return Found(TIP)

    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        return Found(TIP)

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        return Found(tuple(AddressTx(f"{number:064x}", 1, 1) for number in range(self.count)))

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        if not self.answers:
            return Unknown("left alone for a while")
        self.answers -= 1
        return Found(Movement({f"spent at {address}": {"lovelace": 1}}, {f"{address}{tx_id}#0": {"lovelace": 1}}))

    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        made = [f"{address}{number:064x}" for number in range(self.count)]
        return Found(tuple(ChainUtxo(tx_id, 0, address, 1, {}, None, False, False) for tx_id in made))


@pytest.mark.parametrize(("answers", "is_whole"), [(0, False), (10, False), (1000, True)])
async def test_a_longer_outage_is_waited_out_when_more_history_was_already_read(
    monkeypatch: pytest.MonkeyPatch, answers: int, is_whole: bool
) -> None:
    provider = Provider(2000, answers, 60)
    monkeypatch.setattr(history.asyncio, "sleep", provider.sleep)
    read = await read_history(provider, [""], 0)  # type: ignore[arg-type]
    assert isinstance(read, History) is is_whole
    monkeypatch.undo()


async def test_a_provider_that_stays_down_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(2000, 1000, 10**6)
    monkeypatch.setattr(history.asyncio, "sleep", provider.sleep)
    assert isinstance(await read_history(provider, [""], 0), Unknown)  # type: ignore[arg-type]


async def test_a_transaction_between_two_addresses_of_the_wallet_is_one_with_what_it_moved_at_both() -> None:
    read = await read_history(Provider(1, 2, 0), ["a", "b"], 0)  # type: ignore[arg-type]
    assert isinstance(read, History)
    (tx,) = read.transactions
    moved = read.movements[tx.tx_id]
    assert (set(moved.spent), set(moved.made)) == (
        {"spent at a", "spent at b"},
        {f"a{tx.tx_id}#0", f"b{tx.tx_id}#0"},
    )


@pytest.mark.parametrize("listed", ["utxos", "transactions"])
async def test_lists_of_machines_of_unlike_height_are_never_taken_for_one_history(
    monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    """Koios' machines answer the two lists. One of the two lacks what the newest block brought."""
    provider, behind = Provider(3, 10**6, 0), Provider(2, 10**6, 0)
    monkeypatch.setattr(provider, listed, getattr(behind, listed))
    read = await read_history(provider, ["a"], 0)  # type: ignore[arg-type]
    assert isinstance(read, Unknown)
    assert "different blocks" in read.reason
    monkeypatch.undo()
    assert isinstance(await read_history(provider, ["a"], 0), History)  # type: ignore[arg-type]
