"""A wallet's data folder, its settings, and the settings of the folder to restore into."""

from copy import copy
from pathlib import Path

from kit.agent import DEVNET, WORDS, World
from kit.canaries import plant
from payagent.agent.base.ports import Ports, SystemRandomness
from payagent.backup.create import back_up
from payagent.backup.restore import Restored, restore
from payagent.settings.loading import load_settings
from payagent.settings.schema import Settings
from payagent.wallet.new_keystore import create

PASSPHRASE = plant("the passphrase", "canary passphrase of the backups")
NOBODY = "http://127.0.0.1:1/api/v0"


def settings_of(data_dir: Path, chain_url: str = NOBODY, network: str = "devnet") -> Settings:
    config = data_dir.with_name(f"{data_dir.name}.toml")
    config.write_text(
        f'network = "{network}"\ndata_dir = "{data_dir}"\n'
        f'[[chain.providers]]\nkind = "blockfrost"\nbase_url = "{chain_url}"\n'
    )
    return load_settings(config, {"HOME": str(data_dir.parent)})


def with_keystore(world: World) -> World:
    """The same world, with its ledger and its account's keystore in a data folder."""
    data_dir = world.folder / "data"
    data_dir.mkdir(mode=0o700)
    create(data_dir / "keystore.json", WORDS, PASSPHRASE, DEVNET, scrypt_n=2**4)
    world.folder = data_dir
    return world


def taken(world: World, name: str = "backup.tar") -> Path:
    target = world.folder.with_name(name)
    back_up(settings_of(world.folder), target, world.clock.now_ms())
    return target


async def put_back(world: World, source: Path, chain_url: str | None = None) -> tuple[World, Restored]:
    """Another world on the same devnet and clock, with the restored wallet."""
    data_dir = world.folder.with_name("restored")
    ports = Ports(world.clock, SystemRandomness())
    restored = await restore(settings_of(data_dir, chain_url or world.devnet.chain_url), source, ports)
    again = copy(world)
    again.folder = data_dir
    return again, restored


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
