"""Native tokens in a seed: merchants that sell for one, and unwanted tokens that strangers send.

It has its own random numbers and acts in some seeds only, so other seeds run as they did before it was added.

Never: uses the run's random numbers.
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
"""How often a stranger's UTxO has a datum. The agent cannot be sure that a key alone can spend it."""

_JUNK = [(bytes([policy]) * 28 + b"A" * name).hex() for policy in range(1, 9) for name in (0, 3, 32)]
_JUNK_UNITS = (1, 10**6, MAX_UNITS, MAX_UNITS, 2**62)
_LEAST_LOVELACE = 2 * LOVELACE_PER_ADA


def draw_asset(seed: int, shops: tuple[ShopTerms, ...]) -> dict[str, Any]:
    """In some seeds the merchants sell for a token. Prices, limits and thresholds keep their numbers."""
    if Random(f"{seed} usd").random() >= SOLD_FOR_USD:  # noqa: S311  a seed gives the same run again
        return {}
    return {"asset": USD, "shops": tuple(replace(shop, asset=USD) for shop in shops)}


@dataclass(frozen=True, slots=True)
class Beside:
    """The tokens that arrive in the wallet together with lovelace."""

    asset: str
    is_from_strangers: bool
    _rng: Random

    @classmethod
    def of(cls, seed: int, asset: str) -> "Beside":
        rng = Random(f"{seed} strangers")  # noqa: S311
        return cls(asset, rng.random() < SENT_BY_STRANGERS, rng)

    def draw(self, lovelace: int) -> tuple[Mapping[str, int], bytes | None]:
        """The tokens of a UTxO with this much lovelace, and its datum hash, if any."""
        assets: dict[str, int] = {}
        if self.asset != LOVELACE and lovelace >= _LEAST_LOVELACE and self._rng.random() < 0.8:
            assets[self.asset] = self._rng.randint(8, 40) * 10**6
        if not self.is_from_strangers:
            return assets, None
        room = max(0, lovelace // LOVELACE_PER_ADA * 2 - 4)
        for name in self._rng.sample(_JUNK, min(room, self._rng.choice((0, 0, 0, 1, 1, 5, 12)))):
            assets[name] = self._rng.choice(_JUNK_UNITS)
        return dict(sorted(assets.items())), bytes(32) if self._rng.random() < WITH_DATUM else None
