"""Tokens in a seed's world: shops that sell for one, and what strangers put beside the money that they send.

It draws by itself, and in some seeds only, so that all others go as they went without it.
May import: core.money, the devnet's terms. Never: draws from what the run draws from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from payagent.core.money import LOVELACE, LOVELACE_PER_ADA, MAX_UNITS
from payagent.devnet.merchant import Terms as ShopTerms

USD = "d5" * 28 + b"USD".hex()
SOLD_FOR_USD, SENT_BY_STRANGERS = 0.12, 0.12
"""In how many seeds."""

WITH_DATUM = 0.15
"""How often a stranger's coin has one: no key alone can be sure to spend it."""

_JUNK = [(bytes([policy]) * 28 + b"A" * name).hex() for policy in range(1, 9) for name in (0, 3, 32)]
_JUNK_UNITS = (1, 10**6, MAX_UNITS, MAX_UNITS, 2**62)
_LEAST_LOVELACE = 2 * LOVELACE_PER_ADA


def draw_asset(seed: int, shops: tuple[ShopTerms, ...]) -> dict[str, Any]:
    """In some seeds the shops sell for a token; prices, limits and thresholds keep their numbers."""
    if Random(f"{seed} usd").random() >= SOLD_FOR_USD:  # noqa: S311  a seed gives the same run again
        return {}
    return {"asset": USD, "shops": tuple(replace(shop, asset=USD) for shop in shops)}


@dataclass(frozen=True, slots=True)
class Beside:
    """What comes into the wallet with a coin's lovelace."""

    asset: str
    is_from_strangers: bool
    _rng: Random

    @classmethod
    def of(cls, seed: int, asset: str) -> "Beside":
        rng = Random(f"{seed} strangers")  # noqa: S311
        return cls(asset, rng.random() < SENT_BY_STRANGERS, rng)

    def draw(self, lovelace: int) -> tuple[Mapping[str, int], bytes | None]:
        """The tokens of a coin that has so much lovelace, and the hash of its datum if it has one."""
        assets: dict[str, int] = {}
        if self.asset != LOVELACE and lovelace >= _LEAST_LOVELACE and self._rng.random() < 0.8:
            assets[self.asset] = self._rng.randint(8, 40) * 10**6
        if not self.is_from_strangers:
            return assets, None
        room = max(0, lovelace // LOVELACE_PER_ADA * 2 - 4)
        for name in self._rng.sample(_JUNK, min(room, self._rng.choice((0, 0, 0, 1, 1, 5, 12)))):
            assets[name] = self._rng.choice(_JUNK_UNITS)
        return dict(sorted(assets.items())), bytes(32) if self._rng.random() < WITH_DATUM else None
