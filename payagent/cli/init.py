"""`payagent init`: collects the settings for a first start from flags or prompts, and shows the result once.

Never: shows the passphrase; shows recovery words anywhere but on a terminal.
"""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from payagent.cli import init_questions as questions
from payagent.cli.options import ask_passphrase, example, output_options, pass_terminal
from payagent.cli.terminal import Terminal
from payagent.core.network import NETWORKS, how_to_fund
from payagent.core.origin import origin_part, short_name
from payagent.core.problems import Refused
from payagent.settings.config_file import TOKEN_FILE

if TYPE_CHECKING:
    from payagent.init import Choices, Made


EXAMPLE = Path(__file__).with_name("payagent.example.toml")  # a link to config/payagent.example.toml


def _absolute(path: str) -> Path:
    """An absolute path, so that the config works from every folder."""
    return Path(path).expanduser().absolute()


def _print_example(context: click.Context, _parameter: click.Parameter, is_set: bool) -> None:
    if is_set:
        context.ensure_object(Terminal).write(EXAMPLE.read_text())
        context.exit()


@click.command(
    epilog=example(
        "payagent init",
        "payagent init --json --network devnet --provider http://127.0.0.1:3000/api/v0 \\",
        "  --merchant t=http://127.0.0.1:3001 --partner t=demo --passphrase-file ~/passphrase \\",
        "  --config ~/payagent/config.toml --data-dir ~/payagent/data",
    )
)
@click.option("--network", type=click.Choice(list(NETWORKS)), help="Network. Has no default.")
@click.option(
    "--provider",
    "--chain-url",
    "providers",
    multiple=True,
    metavar="KIND|URL",
    help="A chain provider: a kind such as koios, or the complete base URL of a Blockfrost API. Repeatable.",
)
@click.option(
    "--project-id-file", type=_absolute, metavar="FILE", help="File (0600) with the project id of a provider."
)
@click.option(
    "--merchant",
    "merchants",
    multiple=True,
    metavar="[NAME=]URL",
    help="Allow a merchant, such as https://api.example.com or t=https://api.example.com. Repeatable.",
)
@click.option(
    "--partner", "partners", multiple=True, metavar="NAME=ID", help="X-Partner for that merchant. Repeatable."
)
@click.option(
    "--passphrase-file", type=_absolute, metavar="FILE", help="File (0600) with the keystore's passphrase."
)
@click.option(
    "--keystore",
    "keystores",
    multiple=True,
    metavar="URI",
    help="Keep the key in an HSM: 'pkcs11:token=T;object=KEY?module-path=/PATH'. Repeatable, by account.",
)
@click.option("--pin-file", type=_absolute, metavar="FILE", help="File (0600) with the HSM's PIN.")
@click.option("--generate", is_flag=True, help="Make the keys in the HSM. Without it they exist already.")
@click.option(
    "--config",
    type=_absolute,
    metavar="FILE",
    help="Config file to write. Default: $PAYAGENT_CONFIG or ~/.config/payagent/config.toml.",
)
@click.option(
    "--data-dir",
    type=_absolute,
    envvar="PAYAGENT_DATA_DIR",
    metavar="DIR",
    help="Folder for ledger, keystore and token.",
)
@click.option(
    "--restore", type=_absolute, metavar="FILE", help="File with the 24 recovery words of an existing wallet."
)
@click.option(
    "--example",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_example,
    help="Print an example config that explains every key, and exit.",
)
@output_options
@pass_terminal
def init(
    terminal: Terminal,
    network: str | None,
    providers: tuple[str, ...],
    project_id_file: Path | None,
    merchants: tuple[str, ...],
    partners: tuple[str, ...],
    passphrase_file: Path | None,
    keystores: tuple[str, ...],
    pin_file: Path | None,
    generate: bool,
    config: Path | None,
    data_dir: Path | None,
    restore: Path | None,
) -> None:
    """Create a wallet, a config and a first token.

    On a terminal it asks for what is missing, shows the 24 recovery words once, and asks for two of them. If a
    setting was missing, it also adds a first app with a limit. Without a terminal it writes the words to a 0600
    file in the data dir and names it on stderr: move that file off this machine. The operator token has every
    scope and is saved as operator.token in the data dir, where other commands find it. Nothing is overwritten.

    With --keystore the wallet's keys are in an HSM. Then there are neither words nor a passphrase.
    """
    from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
    from payagent.init import Choices, HsmChoices, initialise, lacks_token, named_providers

    config, app = config or _default_config(), None
    tokens: dict[Path, str] = {}
    origins = {name: origin_part(url) for name, url in _pairs(map(_named, merchants), "--merchant").items()}
    partner_by_name = _partners(partners, origins)
    if bool(keystores) < bool(pin_file or generate) or (keystores and (restore or passphrase_file)):
        raise click.UsageError(
            "--pin-file and --generate go with --keystore, --restore and --passphrase-file without"
        )
    secret = {"--pin-file": pin_file} if keystores else {"--passphrase-file": passphrase_file}
    needed = {"--network": network, "--provider": providers or None, **secret}
    missing, can_ask = [name for name, value in needed.items() if value is None], terminal.can_ask
    if missing and can_ask:
        terminal.say(questions.WHAT_COMES)
        network = network or questions.ask_network(terminal)
        providers = providers or questions.ask_providers(terminal, network)
        if project_id_file is None and lacks_token(providers, network):
            project_id_file = config.parent / "blockfrost-project-id"
            tokens = questions.ask_project_id(terminal, project_id_file)
        if not origins:
            origins, partner_by_name = questions.ask_merchant(terminal, network)
        app = questions.ask_app(terminal)
    elif missing:
        raise click.UsageError(f"missing {', '.join(missing)}; on a terminal payagent asks for them")
    choices = Choices(
        network=network or "",
        providers=named_providers(providers, network or "", project_id_file),
        config=config,
        data_dir=data_dir,
        merchants=origins,
        partners=partner_by_name,
        passphrase=""
        if keystores
        else ask_passphrase()
        if passphrase_file is None
        else _read_passphrase(terminal, passphrase_file, private=network != "devnet" or restore is not None),
        words=None if restore is None else _read_words(terminal, restore),
        tokens=tokens,
        passphrase_file=passphrase_file,
        app=app,
        hsm=HsmChoices(
            keystores,
            click.prompt("PIN of the HSM", hide_input=True, err=True)
            if pin_file is None
            else _read_passphrase(terminal, pin_file, private=network != "devnet"),
            pin_file,
            generate,
        )
        if keystores
        else None,
    )
    ports = Ports(SystemClock(), SystemRandomness())
    show_words = partial(questions.show_words, terminal) if can_ask else None
    created = initialise(choices, os.environ, ports, show_words=show_words, randomness=os.urandom)
    _show_result(terminal, created, choices)


def _show_result(terminal: Terminal, created: "Made", choices: "Choices") -> None:
    """Show the result. Tokens are for programs; people are shown where they are."""
    if created.words_file is not None:
        terminal.say(
            f"The 24 recovery words are in {created.words_file}: copy them off this machine, then delete the file."
        )
    if choices.hsm is not None:
        terminal.say(
            "The keys are only in the HSM. Copy them to a second one: if the HSM is lost, so is the money."
        )
    data = {
        "config": str(created.config),
        "data_dir": str(created.data_dir),
        "address": created.address,
        "token": created.token,
    }
    if choices.app is not None:
        data |= {"app": choices.app.name, "app_token_file": str(created.app_token_file)}

    def human() -> None:
        shown = {**data, "token": f"in {created.data_dir / TOKEN_FILE}"}
        terminal.pairs([(name.replace("_", " "), value) for name, value in shown.items()])
        _show_next(terminal, created, choices)

    terminal.give(data, human)


def _show_next(terminal: Terminal, created: "Made", choices: "Choices") -> None:
    from shlex import quote

    from payagent.doctor.advice import void_limits
    from payagent.settings.loading import load_settings

    if choices.app is not None:
        terminal.say("\nGive the app's token to the program, then delete its file: payagent stores only the hash.")
    for _, why in void_limits(load_settings(created.config, os.environ)):
        terminal.say(f"Warning: {why}.")
    terminal.say(f"{how_to_fund(choices.network, choices.providers[0].base_url, created.address)}\n\nNext:")
    option = "" if created.config == _default_config() else f" --config {quote(str(created.config))}"
    for command, does in (
        ("serve", "start the daemon, and leave it running"),
        ("doctor", "in another terminal: check everything, and see what is missing"),
        ("wallet", "see the ADA that arrived"),
    ):
        terminal.say(f"  payagent {command}{option}  # {does}")


def _named(merchant: str) -> str:
    """NAME=URL. A URL without a name gets one."""
    return f"{short_name(origin_part(merchant))}={merchant}" if "://" in merchant.partition("=")[0] else merchant


def _pairs(values: Iterable[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or not name or not rest or name in pairs:
            raise click.BadParameter(f"{value}: write NAME=VALUE, each name once", param_hint=option)
        pairs[name] = rest
    return pairs


def _partners(values: tuple[str, ...], merchants: dict[str, str]) -> dict[str, str]:
    partners = _pairs(values, "--partner")
    if unknown := partners.keys() - merchants.keys():
        raise click.BadParameter(f"no --merchant is named {', '.join(sorted(unknown))}", param_hint="--partner")
    return partners


def _default_config() -> Path:
    path = os.environ.get("PAYAGENT_CONFIG")
    return Path(path) if path else Path.home() / ".config/payagent/config.toml"


def _read_passphrase(terminal: Terminal, path: Path, *, private: bool) -> str:
    """Read the passphrase. For new words on the devnet, others may read the file (as in settings.paths)."""
    from payagent.secret_file import read_secret_file

    passphrase = read_secret_file(path, private=private)
    if path.stat().st_mode & 0o077:
        terminal.say(f"note: {path} can be read by others; only the devnet allows that")
    return passphrase


def _read_words(terminal: Terminal, path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            terminal.say(f"note: {path} can be read by others; delete it afterwards")
        with path.open("rb") as file:
            return file.read(4096).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            "mnemonic_invalid", f"{path} cannot be read: {getattr(error, 'strerror', 'not text')}"
        ) from None
