"""Settings: their sources and precedence, what is refused with which message, and that no secret is shown."""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from payagent.core.address import encode_address
from payagent.core.origin import parse_origin
from payagent.core.problems import Refused
from payagent.devnet.channel_script import SCRIPT_HASH
from payagent.secret_file import SecretFile, read_secret_file
from payagent.settings.config_file import DaemonPaths, find_config, find_daemon
from payagent.settings.loading import load_settings, read_merchant
from payagent.settings.paths import passphrase_file
from payagent.settings.schema import (
    AssetLimitSettings,
    MerchantSettings,
    NotificationSettings,
    ProviderSettings,
    Settings,
    shared_settings_hashes,
)

EXAMPLE = Path(__file__).parents[2] / "config/payagent.example.toml"
CANARY = "canary-Zebra-7f3a91d2"
MINIMAL = """
network = "{network}"
[[chain.providers]]
kind = "blockfrost"
base_url = "http://127.0.0.1:3000/api/v0"
"""
POLICY = "ab" * 28
HOOK = '[[notifications]]\nname = "ops"\nkind = "webhook"\nurl = "{}"\n'
PREPROD_ADDRESS = encode_address(b"\x60" + b"\x01" * 28).text
MAINNET_ADDRESS = encode_address(b"\x61" + b"\x01" * 28).text


def write(folder: Path, text: str, name: str = "config.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(folder: Path, extra: str = "", *, network: str = "preprod", **environ: str) -> Settings:
    path = write(folder, MINIMAL.format(network=network) + extra)
    return load_settings(path, {"HOME": str(folder), **environ})


def refusal(folder: Path, extra: str = "", **environ: str) -> str:
    with pytest.raises(Refused) as caught:
        load(folder, extra, **environ)
    assert caught.value.name == "config_invalid"
    return caught.value.detail


@pytest.mark.parametrize("text", ["size = 1" + "0" * 5000, "nested = " + "[" * 100_000])
def test_toml_that_python_cannot_parse_is_refused_as_invalid_toml(tmp_path: Path, text: str) -> None:
    assert "is not valid TOML" in refusal(tmp_path, f"\n[more]\n{text}\n")


def test_a_tokens_limits_may_be_in_whole_tokens_by_its_name(tmp_path: Path) -> None:
    table = f'[[limits.assets]]\nasset = "{POLICY}"\ndecimals = 6\nname = "USDM"\n'
    limits = load(tmp_path, table + 'per_payment = "2.5 USDM"\nper_day = 7\ntotal = "9 units"\n').limits
    (token,) = limits.assets
    assert (token.per_payment_units, token.per_day_units, token.total_units) == (2_500_000, 7, 9)
    assert limits.tokens == {"USDM": (POLICY, 6)}


# The example config


def keys_of_model(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    rows: dict[str, type[BaseModel]] = {
        "chain.providers[]": ProviderSettings,
        "merchants.*": MerchantSettings,
        "limits.assets[]": AssetLimitSettings,
        "notifications[]": NotificationSettings,
    }  # fmt: skip
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        row = next((row for row in rows if re.match(re.escape(key) + r"(\[\]|\.\*)$", row)), None)
        if row is not None:
            yield from keys_of_model(rows[row], f"{row}.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of_model(field.annotation, f"{key}.")
        else:
            yield key


def keys_of_toml(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        key = f"{prefix}{name}" if prefix != "merchants." else "merchants.*"
        if isinstance(value, dict) and key != "keystore.environment":
            yield from keys_of_toml(value, f"{key}.")
        elif isinstance(value, list):
            if not all(isinstance(row, dict) for row in value):
                yield key
                continue
            for row in value:
                yield from keys_of_toml(row, f"{key}[].")
        else:
            yield key


def test_the_example_config_has_exactly_the_existing_keys() -> None:
    assert set(keys_of_toml(tomllib.loads(EXAMPLE.read_text()))) == set(keys_of_model(Settings))


def test_every_key_of_the_example_config_has_a_comment_above_it() -> None:
    above = ""
    is_limit = re.compile(r"(per_[a-z]+|total) = ").match
    for line in EXAMPLE.read_text().splitlines():
        if re.match(r"[a-z_]+ = ", line):
            assert above.startswith("#") or is_limit(line)  # limits in a group share one comment
        above = line


def test_the_example_config_loads_and_shows_the_defaults(tmp_path: Path) -> None:
    example = load_settings(EXAMPLE, {"HOME": str(tmp_path)})
    defaults = load(tmp_path, '[merchants.t]\norigin = "https://api-v3.fluxpointstudios.com"')
    assert example.payments == defaults.payments
    assert example.api.listen == defaults.api.listen
    assert example.limits.per_payment_lovelace == defaults.limits.per_payment_lovelace == 5_000_000
    assert example.limits.per_day_lovelace == defaults.limits.per_day_lovelace == 20_000_000
    assert example.keystore.account == defaults.keystore.account
    assert (example.merchants["t"].proof, example.merchants["t"].ready) == ("tx_hash", "auto")
    assert example.merchants["t"].timeout_s == defaults.merchants["t"].timeout_s


def test_channels_are_off_until_they_are_turned_on(tmp_path: Path) -> None:
    merchant = '[merchants.t]\norigin = "https://t.example"\nchannel = { provider_keys = ["%s"] }\n' % ("ab" * 28)
    assert load(tmp_path, merchant, network="preprod").channel_rules is None
    assert load(tmp_path, merchant + "[channels]\nenabled = true", network="preprod").channel_rules == {
        "network": "cardano:preprod",
        "scripts": ("62ce4309e37e09e5c633c96c6ae68061c434f122d32626d6912d7c2a",),
        "providers": {"ab" * 28: (20_000_000, 86_400_000)},
        "locked_per_day": 50_000_000,
        "signed_per_day": 10_000_000,
    }


def test_the_devnet_trusts_its_own_script(tmp_path: Path) -> None:
    rules = load(tmp_path, "[channels]\nenabled = true", network="devnet").channel_rules
    assert rules is not None
    assert rules["scripts"] == (SCRIPT_HASH.hex(),)


@pytest.mark.parametrize("network", ["mainnet", "preview"])
def test_no_other_network_has_channels(tmp_path: Path, network: str) -> None:
    with pytest.raises(Refused, match=r"channels\.enabled: nobody has audited the validator"):
        load(tmp_path, "[channels]\nenabled = true", network=network)


def test_devnet_has_its_own_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, network="devnet")
    assert settings.limits.per_payment_lovelace == 1_000_000_000
    assert settings.limits.per_day_lovelace == 100_000_000_000
    assert settings.limits.assets == ()
    assert settings.payments.confirm_depth == 1
    assert (settings.payments.void_depth, settings.payments.settle_depth) == (15, 2160)


@pytest.mark.parametrize(
    ("network", "expected"), [("preprod", ("first_use", 25, 3, 100)), ("devnet", ("off", None, 3, None))]
)
def test_a_merchant_has_pinning_and_limits_by_default(
    tmp_path: Path, network: str, expected: tuple[object, ...]
) -> None:
    named = '[merchants.t]\norigin = "https://a.example"\n'
    merchant = load(tmp_path, named, network=network).merchants["t"]
    assert (
        merchant.pin,
        merchant.price_rise_percent_max,
        merchant.stop_after_unserved,
        merchant.payments_in_flight_max,
    ) == expected
    assert merchant.pay_to == merchant.split_to == ()
    assert read_merchant("t", {"origin": "https://a.example"}, network) == merchant, "also one added at run time"
    keys = ("pin", "price_rise_percent_max", "stop_after_unserved", "payments_in_flight_max")
    off = "".join(f'{key} = "off"\n' for key in keys)
    merchant = load(tmp_path, named + off, network=network).merchants["t"]
    assert merchant.pin == "off"
    assert (
        merchant.price_rise_percent_max is merchant.stop_after_unserved is merchant.payments_in_flight_max is None
    )


# Sources and precedence


def test_flags_override_the_environment_which_overrides_the_file_and_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.format(network="preprod") + '[limits]\nper_day = "7 ADA"\n')
    environ = {"HOME": str(tmp_path)}
    assert load_settings(path, environ).limits.per_day_lovelace == 7_000_000
    environ["PAYAGENT_LIMITS__PER_DAY"] = "8 ADA"
    assert load_settings(path, environ).limits.per_day_lovelace == 8_000_000
    flags = {"limits": {"per_day": "250000 lovelace"}, "api": {"listen": "[::1]:0"}}
    settings = load_settings(path, environ, flags)
    assert (settings.limits.per_day_lovelace, settings.api.listen) == (250_000, "[::1]:0")
    assert settings.limits.per_payment_lovelace == 5_000_000


def test_the_environment_can_set_a_merchants_key_and_replace_a_list(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        '[merchants.t]\norigin = "https://a.example"\npartner = "file"\n',
        PAYAGENT_MERCHANTS__T__PARTNER="env",
        PAYAGENT_CHAIN__PROVIDERS='[{"kind": "blockfrost", "base_url": "https://b.example/api/v0"}]',
        PAYAGENT_DATA_DIR="/srv/payagent",
    )
    assert settings.merchants["t"].partner == "env"
    assert settings.chain.providers == (ProviderSettings(kind="blockfrost", base_url="https://b.example/api/v0"),)
    assert settings.data_dir == Path("/srv/payagent")


def test_the_environment_can_set_every_kind_of_merchant_key(tmp_path: Path) -> None:
    merchant = load(
        tmp_path,
        '[merchants.t]\norigin = "https://a.example"\n',
        PAYAGENT_MERCHANTS__T__ALLOW_PRIVATE_NETWORK="true",
        PAYAGENT_MERCHANTS__T__REQUEST_COMMITMENT="false",
        PAYAGENT_MERCHANTS__T__PAY_TO=f'["{PREPROD_ADDRESS}"]',
        PAYAGENT_MERCHANTS__T__RESOURCE_ORIGINS='["http://b.example"]',
        PAYAGENT_MERCHANTS__T__TOPUP__BODY="{}",
        PAYAGENT_MERCHANTS__T__PARTNER="true",
        PAYAGENT_MERCHANTS__T__PRICE_RISE_PERCENT_MAX="off",
        PAYAGENT_MERCHANTS__T__LIMITS__PER_DAY="5 ADA",
    ).merchants["t"]
    assert (merchant.allow_private_network, merchant.request_commitment) == (True, False)
    assert (merchant.pay_to, merchant.resource_origins) == ((PREPROD_ADDRESS,), ("http://b.example",))
    assert (merchant.partner, merchant.topup.body, merchant.price_rise_percent_max) == ("true", "{}", None)
    assert merchant.limits.per_day_lovelace == 5_000_000


def test_daemons_of_a_fleet_agree_whether_a_default_is_written_or_not(tmp_path: Path) -> None:
    fees = "[wallet]\nupkeep_fees_per_day = '{} ADA'\n"
    left_out, written, other = (load(tmp_path, text) for text in ("", fees.format(2), fees.format(3)))
    assert shared_settings_hashes(left_out) == shared_settings_hashes(written) != shared_settings_hashes(other)


def test_data_dir_and_socket_default_to_the_users_own_directories(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.data_dir == tmp_path / ".local/share/payagent"
    assert settings.api.socket == tmp_path / ".local/share/payagent/payagent.sock"
    runtime = load(tmp_path, XDG_RUNTIME_DIR="/run/user/7")
    assert runtime.api.socket == Path("/run/user/7/payagent/payagent.sock")
    relative = load(tmp_path, XDG_RUNTIME_DIR="run")
    assert relative.api.socket == settings.api.socket, "the XDG specification says to ignore it"


@pytest.mark.parametrize(
    ("extra", "environ"),
    [
        ("", {}),
        ("", {"XDG_RUNTIME_DIR": "/run/user/7"}),
        ("", {"XDG_RUNTIME_DIR": "run", "PAYAGENT_TOKEN": "pa_x"}),
        ('[api]\nsocket = "/srv/s"', {"XDG_RUNTIME_DIR": "/run/user/7"}),
        ('[api]\nsocket = "~/s"', {}),
    ],
)
def test_a_command_finds_the_daemon_where_the_validated_settings_have_it(
    tmp_path: Path, extra: str, environ: dict[str, str]
) -> None:
    settings = load(tmp_path, extra, **environ)
    paths = find_daemon(tmp_path / "config.toml", {"HOME": str(tmp_path), **environ})
    assert paths == DaemonPaths(settings.api.socket, settings.data_dir)


@pytest.mark.parametrize(
    ("top", "extra", "environ"),
    [
        ("", "", {"PAYAGENT_DATA_DIR": "/srv"}),
        ("", "", {"PAYAGENT_DATADIR": "/srv"}),
        ('data_dir = "srv"\n', "", {}),
        ("api = 5\n", "", {}),
        ("", "[api]\nsocket = 5", {}),
    ],
)
def test_what_only_the_validated_settings_can_tell_is_left_to_them(
    tmp_path: Path, top: str, extra: str, environ: dict[str, str]
) -> None:
    path = write(tmp_path, top + MINIMAL.format(network="preprod") + extra)
    assert find_daemon(path, {"HOME": str(tmp_path), **environ}) is None


def test_the_first_config_file_in_the_search_order_is_used(tmp_path: Path) -> None:
    places = {
        name: write(tmp_path, "", name)
        for name in ("flag.toml", "variable.toml", ".config/payagent/config.toml", "etc/payagent/config.toml")
    }
    environ = {"HOME": str(tmp_path), "PAYAGENT_CONFIG": str(places["variable.toml"])}
    etc = tmp_path / "etc"
    assert find_config(places["flag.toml"], environ, etc) == places["flag.toml"]
    assert find_config(None, environ, etc) == places["variable.toml"]
    del environ["PAYAGENT_CONFIG"]
    assert find_config(None, environ, etc) == places[".config/payagent/config.toml"]
    places[".config/payagent/config.toml"].unlink()
    assert find_config(None, environ, etc) == places["etc/payagent/config.toml"]
    places["etc/payagent/config.toml"].unlink()
    with pytest.raises(Refused, match=r"no config file at .*\.config/payagent.* or .*etc/payagent"):
        find_config(None, environ, etc)


def test_a_named_config_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "", ".config/payagent/config.toml")
    missing = tmp_path / "missing.toml"
    with pytest.raises(Refused, match=r"--config names .*missing\.toml, which is not a file"):
        find_config(missing, {"HOME": str(tmp_path)})
    with pytest.raises(Refused, match=r"PAYAGENT_CONFIG names .*missing\.toml, which"):
        find_config(None, {"HOME": str(tmp_path), "PAYAGENT_CONFIG": str(missing)})


# What is refused

BAD_TOML = {
    "unknown table": ("[limit]\n", "limit: unknown key. Did you mean limits?"),
    "unknown key": ("[api]\nlisen = 1\n", "api.lisen: unknown key. Did you mean listen?"),
    "unknown key of a merchant": (
        '[merchants.t]\norigin = "https://a.example"\npartnr = "x"\n',
        "merchants.t.partnr: unknown key. Did you mean partner?",
    ),
    "unknown key of an asset": (
        f'[[limits.assets]]\nasset = "{POLICY}"\nper_payment = "1"\nper_day = "1"\ndecimal = 6\n',
        "limits.assets[0].decimal: unknown key. Did you mean decimals?",
    ),
    "unknown key of the wallet": (
        "[wallet]\nupkeep_fees_per_dy = 1\n",
        "wallet.upkeep_fees_per_dy: unknown key. Did you mean upkeep_fees_per_day?",
    ),
    "amount without unit": ('[limits]\nper_day = "20"\n', 'limits.per_day: write an amount with its unit'),
    "amount as number": ("[limits]\nper_day = 20\n", 'limits.per_day: write an amount with its unit'),
    "amount as float": ("[limits]\nper_day = 2.5\n", 'limits.per_day: write an amount with its unit'),
    "amount too fine": ('[limits]\nper_day = "0.0000001 ADA"\n', "limits.per_day: write an amount"),
    "depth as float": ("[payments]\nconfirm_depth = 3.0\n", "payments.confirm_depth: write a whole number"),
    "depth as bool": ("[payments]\nconfirm_depth = true\n", "payments.confirm_depth: write a whole number"),
    "depth zero": ("[payments]\nconfirm_depth = 0\n", "payments.confirm_depth: "),
    "settled before void": (
        "[payments]\nsettle_depth = 5\n",
        "payments: settle_depth must not be less than confirm_depth or void_depth",
    ),
    "listen everywhere": (
        '[api]\nlisten = "0.0.0.0:8402"\n',
        "api: other machines can reach listen. Set tls_certificate_file",
    ),
    "listen by name": ('[api]\nlisten = "example.com:1"\n', "api.listen: write an address and a port"),
    "listen without port": ('[api]\nlisten = "127.0.0.1"\n', "api.listen: write an address and a port"),
    "listen without brackets": ('[api]\nlisten = "::1:8402"\n', "api.listen: write an address and a port"),
    "listen in brackets": ('[api]\nlisten = "[127.0.0.1]:8402"\n', "api.listen: write an address and a port"),
    "relative path": ('data_dir = "data"\n', "data_dir: write an absolute path"),
    "a host with a port": (
        '[api]\nallowed_hosts = ["here:8402"]\n',
        "api.allowed_hosts[0]: write a lower-case name without",
    ),
    "any host": ('[api]\nallowed_hosts = ["*"]\n', "api.allowed_hosts[0]: write a lower-case name without"),
    "links without the dashboard": (
        '[api]\ndashboard = false\n[approvals]\nlink_origin = "https://pay.example"\n',
        "approvals.link_origin: the links are pages of the dashboard, which is off",
    ),
    "links at the API": (
        '[approvals]\nlink_origin = "http://127.0.0.1:8402"\n',
        "approvals.link_origin: the API answers at 127.0.0.1, and the dashboard needs a name of its own",
    ),
    "links at a host of the API": (
        '[api]\nallowed_hosts = ["pay.example"]\n[approvals]\nlink_origin = "https://pay.example"\n',
        "approvals.link_origin: the API answers at pay.example",
    ),
    "links without TLS": (
        '[approvals]\nlink_origin = "http://pay.example"\n',
        "approvals.link_origin: write a URL with https://",
    ),
    "long socket": (f'[api]\nsocket = "/{"x" * 120}"\n', "api.socket: the path is too long. Write one of at"),
    "split mode": (
        '[merchants.t]\norigin = "https://a.example"\nsplit_mode = "half"\n',
        "merchants.t.split_mode: must be",
    ),
    "partner with a line end": (
        '[merchants.t]\norigin = "https://a.example"\npartner = "a\\r\\nX-Evil: 1"\n',
        "merchants.t.partner: write 1 to 128 visible ASCII characters",
    ),
    "merchant without https": (
        '[merchants.t]\norigin = "http://a.example"\n',
        "merchants.t.origin: write a URL with https://. http:// is accepted only",
    ),
    "merchant without https, next door": (
        '[merchants.t]\norigin = "http://10.0.0.7:8080"\n',
        "merchants.t.origin: write a URL with https://. http:// is accepted only",
    ),
    "a drift that is no number": (
        '[merchants.t]\norigin = "https://a.example"\nprice_rise_percent_max = "some"\n',
        'merchants.t.price_rise_percent_max: write a whole number from 0 to 1000000, or "off"',
    ),
    "a drift as a float": (
        '[merchants.t]\norigin = "https://a.example"\nprice_rise_percent_max = 2.5\n',
        'merchants.t.price_rise_percent_max: write a whole number from 0 to 1000000, or "off"',
    ),
    "a merchant that is stopped from the start": (
        '[merchants.t]\norigin = "https://a.example"\nstop_after_unserved = 0\n',
        'merchants.t.stop_after_unserved: write a whole number from 1 to 1000000, or "off"',
    ),
    "an address of another network": (
        f'[merchants.t]\norigin = "https://a.example"\npay_to = ["{MAINNET_ADDRESS}"]\n',
        "merchants.t.pay_to: an address cannot be paid on preprod (address_invalid/wrong_network).",
    ),
    "a share to nobody": (
        '[merchants.t]\norigin = "https://a.example"\nsplit_to = ["addr1"]\n',
        "merchants.t.split_to: an address cannot be paid on preprod (address_invalid/bad_checksum).",
    ),
    "merchant without origin": ("[merchants.t]\n", "merchants.t.origin: missing. `payagent init --example`"),
    "merchant's name": ('[merchants."A b"]\norigin = "https://a.example"\n', "merchants: name a merchant with"),
    "one origin twice": (
        '[merchants.a]\norigin = "https://a.example"\n[merchants.b]\norigin = "HTTPS://A.example:443/"\n',
        "two merchants have the same origin",
    ),
    "ADA as a token": (
        '[[limits.assets]]\nasset = "ADA"\nper_payment = "1"\nper_day = "1"\n',
        "limits.assets[0].asset: name a native token. The limits of ADA are limits.per_payment",
    ),
    "ticker": (
        '[[limits.assets]]\nasset = "USDM"\nper_payment = "1"\nper_day = "1"\n',
        "limits.assets[0].asset: write policy id and asset name",
    ),
    "one asset twice": (
        f'[[limits.assets]]\nasset = "{POLICY}.00"\nper_payment = "1"\nper_day = "1"\n'
        f'[[limits.assets]]\nasset = "{POLICY}00"\nper_payment = "1"\nper_day = "1"\n',
        "limits: assets has two tables for the same asset",
    ),
    "a token's name without decimals": (
        f'[[limits.assets]]\nasset = "{POLICY}"\nname = "USDM"\nper_payment = "1"\nper_day = "1"\n',
        "limits.assets[0].name: set decimals too",
    ),
    "a token that is called ADA": (
        f'[[limits.assets]]\nasset = "{POLICY}"\ndecimals = 6\nname = "Ada"\nper_payment = "1"\nper_day = "1"\n',
        "limits.assets[0].name: write a short name in ASCII such as USDM",
    ),
    "two tokens of one name": (
        f'[[limits.assets]]\nasset = "{POLICY}00"\ndecimals = 0\nname = "X"\nper_payment = "1"\nper_day = "1"\n'
        f'[[limits.assets]]\nasset = "{POLICY}01"\ndecimals = 0\nname = "X"\nper_payment = "1"\nper_day = "1"\n',
        "limits: two assets have the same name",
    ),
    "an amount of another token": (
        f'[[limits.assets]]\nasset = "{POLICY}"\nper_payment = "1 USDM"\nper_day = "1"\n',
        'limits.assets[0].per_payment: write a whole number of smallest units in quotes, such',
    ),
    "webhook without a signature": (
        HOOK.format("https://a.example/hook"),
        "notifications[0]: set secret_file",
    ),
    "a bot without a token": (
        '[[notifications]]\nname = "phone"\nkind = "telegram"\n',
        "notifications[0]: set secret_file",
    ),
    "a channel with a secret file": (
        HOOK.replace("webhook", "slack").format("https://a.example/hook") + 'secret_file = "/x"\n',
        "notifications[0]: remove secret_file",
    ),
    "a topic without a server": (
        '[[notifications]]\nname = "phone"\nkind = "ntfy"\n',
        "notifications[0]: set url",
    ),
    "webhook in the clear": (
        HOOK.format("http://a.example/hook") + 'secret_file = "/x"\n',
        "notifications[0].url: write a URL with https://",
    ),
    "webhook with a query": (
        HOOK.format("https://a.example/?key=1") + 'secret_file = "/x"\n',
        "notifications[0].url: remove the user, query or fragment",
    ),
    "webhook secret in the config": (
        HOOK.format("https://a.example/hook") + 'secret = "x"\n',
        "notifications[0].secret: unknown key. Did you mean secret_file?",
    ),
    "two targets of one name": (
        2 * (HOOK.format("https://a.example/hook") + 'secret_file = "/x"\n'),
        "two notifications have the same name. Rename one",
    ),
    "an event that does not exist": (
        HOOK.format("https://a.example/hook") + 'secret_file = "/x"\nevents = ["payment.paid"]\n',
        "notifications[0].events[0]: no event is called that",
    ),
    "a target's name for people": (
        HOOK.replace("ops", "My phone").format("https://a.example/hook") + 'secret_file = "/x"\n',
        "notifications[0].name: name it with lower-case letters and digits",
    ),
    "mark as a bare number": ("[alerts]\nwallet_below = 20\n", 'alerts.wallet_below: write an amount'),
    "upkeep as a bare number": (
        "[wallet]\nupkeep_fees_per_day = 2\n",
        'wallet.upkeep_fees_per_day: write an amount with its unit',
    ),
    "no account": ("[wallet]\naccounts = 0\n", "wallet.accounts: "),
    "accounts of no fleet": ("[wallet]\naccounts = 2\n", "wallet.accounts: more than one account needs"),
    "calls as text": (
        '[merchants.t]\norigin = "https://a.example"\nprepaid_alert_below = "few"\n',
        "merchants.t.prepaid_alert_below: write a whole number",
    ),
    "token units as ADA": (
        f'[[limits.assets]]\nasset = "{POLICY}"\nper_payment = "1 ADA"\nper_day = "1"\n',
        "limits.assets[0].per_payment: write a whole number of smallest units",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TOML)
def test_a_config_error_names_the_file_the_key_and_the_fix(tmp_path: Path, case: str) -> None:
    extra, message = BAD_TOML[case]
    path = write(tmp_path, extra if case == "relative path" else "")
    top, tables = (extra, "") if case == "relative path" else ("", extra)
    path.write_text(top + MINIMAL.format(network="preprod") + tables)
    with pytest.raises(Refused) as caught:
        load_settings(path, {"HOME": str(tmp_path)})
    assert caught.value.name == "config_invalid"
    assert f"{path}: {message}" in caught.value.detail


@pytest.mark.parametrize(
    ("providers", "told"),
    [
        ("[]", "chain.providers: the list is empty. Write at least one table, such as [[chain.providers]]"),
        ("3", "chain.providers: write a list"),
        ("[3]", "chain.providers[0]: write a table of keys"),
        ('[{kind = "blockfrost"}]', "chain.providers[0].base_url: missing. `payagent init --example` explains it"),
    ],
)
def test_an_invalid_list_of_providers_is_one_line_of_error(tmp_path: Path, providers: str, told: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'network = "preprod"\n[chain]\nproviders = {providers}\n')
    with pytest.raises(Refused) as caught:
        load_settings(path, {"HOME": str(tmp_path)})
    (line,) = caught.value.detail.splitlines()
    assert line.startswith(f"{path}: {told}")


BAD_URLS = (
    "127.0.0.1:3000",
    "ftp://a.example/",
    "https://user:pw@a.example/",
    "https://a.example/?key=1",
    "http://",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:3000/\\n",
    "HTTP://127.0.0.1:3000",
)


@pytest.mark.parametrize("url", BAD_URLS)
def test_an_incomplete_provider_url_or_one_with_a_secret_is_refused(tmp_path: Path, url: str) -> None:
    path = write(tmp_path, MINIMAL.format(network="preprod").replace("http://127.0.0.1:3000/api/v0", url))
    with pytest.raises(Refused, match=r"chain\.providers\[0\]\.base_url: "):
        load_settings(path, {"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PAYAGENT_LIMIT__PER_DAY", "5 ADA", "unknown key limit. Did you mean limits?"),
        ("PAYAGENT_TOKENS", CANARY, "unknown key tokens"),
        ("PAYAGENT_API__LISEN", "x", "api.lisen: unknown key. Did you mean listen?"),
        ("PAYAGENT_LIMITS__PER_DAY", "lots", "limits.per_day: write an amount with its unit"),
        ("PAYAGENT_CHAIN__PROVIDERS", "[", "chain.providers: write a list (JSON in a variable)"),
        ("PAYAGENT_CHAIN", "[", "chain: write a table of keys"),
        ("PAYAGENT_PAYMENTS__VOID_DEPTH", "1_5", "payments.void_depth: write a whole number"),
    ],
)
def test_the_environment_is_checked_like_the_file(tmp_path: Path, variable: str, value: str, message: str) -> None:
    detail = refusal(tmp_path, **{variable: value})
    assert detail.startswith(f"environment {variable}")
    assert message in detail
    assert CANARY not in detail


def test_a_variable_for_a_table_and_one_for_its_key_are_merged(tmp_path: Path) -> None:
    nested = {"PAYAGENT_API__LISTEN": "127.0.0.1:1"}
    api = load(tmp_path, PAYAGENT_API='{"rate_limit_per_s": 5, "listen": "127.0.0.1:2"}', **nested).api
    assert (api.rate_limit_per_s, api.listen) == (5, "127.0.0.1:1")
    assert refusal(tmp_path, PAYAGENT_API="x", **nested) == "environment PAYAGENT_API: api: write a table of keys"


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("pay_to", "addr1", "write a list (JSON in a variable)"),
        ("allow_private_network", "yes", "write true or false"),
    ],
)
def test_a_merchants_key_in_the_environment_is_checked_like_in_the_file(
    tmp_path: Path, key: str, value: str, fix: str
) -> None:
    variable = f"PAYAGENT_MERCHANTS__T__{key.upper()}"
    told = refusal(tmp_path, '[merchants.t]\norigin = "https://a.example"\n', **{variable: value})
    assert told == f"environment {variable}: merchants.t.{key}: {fix}"


def test_a_clients_token_in_the_environment_is_not_a_setting(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.format(network="preprod"))
    environ = {"HOME": str(tmp_path), "PAYAGENT_TOKEN": CANARY}
    assert CANARY not in repr(load_settings(path, environ))
    assert load_settings(path, environ) == load_settings(path, {"HOME": str(tmp_path)})


def test_an_invalid_flag_is_blamed_on_the_command_line_and_not_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.format(network="preprod"))
    with pytest.raises(Refused, match="command line: api: other machines can reach listen"):
        load_settings(path, {"HOME": str(tmp_path)}, {"api": {"listen": "0.0.0.0:1"}})


def test_network_has_no_default(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.format(network="preprod").replace("network", "#"))
    with pytest.raises(Refused, match=r"network: missing\. Write one of mainnet, preprod"):
        load_settings(path, {"HOME": str(tmp_path)})


def test_all_config_errors_are_reported_at_once(tmp_path: Path) -> None:
    detail = refusal(tmp_path, '[limits]\nper_day = "1"\n[api]\nlisten = "x"\n[keystore]\naccount = -1\n')
    assert [line.split(": ")[1] for line in detail.splitlines()] == [
        "api.listen", "limits.per_day", "keystore.account",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        f'project_id = "{CANARY}"\n',
        f'[keystore]\npassphrase = "{CANARY}"\n',
        f'[merchants.t]\norigin = "https://a.example"\napi_key = "{CANARY}"\n',
        f'[merchants.t]\norigin = "https://{CANARY}:pw@a.example"\n',
        f'[merchants.t]\norigin = "https://a.example:{CANARY}"\n',
        f'[keystore]\npassphrase_file = "{CANARY}"\n',
        f'[limits]\nper_day = "{CANARY}"\n',
        f"[limits]\nper_day = {CANARY}\n",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown_in_the_error(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, MINIMAL.format(network="preprod") + text)
    with pytest.raises(Refused) as caught:
        load_settings(path, {"HOME": str(tmp_path)})
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None or CANARY not in str(caught.value.__cause__)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_settings_are_immutable(tmp_path: Path) -> None:
    settings = load(tmp_path, '[merchants.t]\norigin = "https://a.example"\n')
    with pytest.raises(ValueError, match="frozen"):
        settings.limits.per_day_lovelace = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.merchants["u"] = settings.merchants["t"]  # type: ignore[index]


def test_token_limits_hold_exact_units(tmp_path: Path) -> None:
    rows = f'[[limits.assets]]\nasset = "{POLICY}.74"\nper_payment = "9223372036854775807"\nper_day = "1"\n'
    (token,) = load(tmp_path, rows).limits.assets
    assert (token.asset, token.per_payment_units, token.per_day_units) == (f"{POLICY}74", 9223372036854775807, 1)


@pytest.mark.parametrize(
    ("text", "lovelace"),
    [
        ("", 2_000_000),
        ('[wallet]\nupkeep_fees_per_day = "0 ADA"\n', 0),
        ('[wallet]\nupkeep_fees_per_day = "0.5 ADA"\n', 500_000),
    ],
)
def test_upkeep_may_cost_2_ada_a_day_by_default(tmp_path: Path, text: str, lovelace: int) -> None:
    assert load(tmp_path, text).wallet.upkeep_fees_per_day_lovelace == lovelace


def test_alerts_are_off_by_default(tmp_path: Path) -> None:
    settings = load(tmp_path, '[merchants.t]\norigin = "https://a.example"\n')
    assert (settings.alerts.wallet_below_lovelace, settings.notifications) == (None, ())
    assert settings.merchants["t"].prepaid_alert_below is None


@pytest.mark.parametrize(
    "url", ["https://a.example/hook/", "http://127.0.0.1:9/x", "http://[::1]:9/", "http://localhost/"]
)
def test_a_webhook_url_is_kept_exactly_as_written(tmp_path: Path, url: str) -> None:
    told = HOOK.format(url) + 'secret_file = "/x"\n'
    assert load(tmp_path, told).notifications[0].url == url


# Origins


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("HTTPS://API.Example.com:443/", "https://api.example.com"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://127.0.0.1:8403", "http://127.0.0.1:8403"),
        ("http://[0:0::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_origin_is_normalized_to_one_spelling(text: str, origin: str) -> None:
    assert parse_origin(text) == origin
    assert parse_origin(origin) == origin


@pytest.mark.parametrize(
    "text",
    [
        "", "api.example.com", "ftp://a.example", "https://", "https://a.example/chat", "https://a.example?x=1",
        "https://a.example#x", "https://u@a.example", "https://a.example:", "https://a.example:0",
        "https://a.example:99999", "https://a.example:x", "https://bücher.example", "https://a example",
        "https://a.example\\@b.example", "https://a..example", "https://[::zz]", "https://a.example\n",
        "https://-a.example", "https://a_b.example",
    ],
)  # fmt: skip
def test_a_malformed_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        parse_origin(text)


# Secrets


def secret(path: Path, content: bytes = CANARY.encode() + b"\n", mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [CANARY.encode(), CANARY.encode() + b"\n", CANARY.encode() + b"\r\n"])
def test_a_secret_is_read_from_a_private_file_without_the_line_end(tmp_path: Path, content: bytes) -> None:
    assert read_secret_file(secret(tmp_path / "s", content)) == CANARY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_a_secret_file_open_to_others_is_refused_and_its_content_not_shown(tmp_path: Path, mode: int) -> None:
    path = secret(tmp_path / "s", mode=mode)
    with pytest.raises(Refused, match=r"open to others; run: chmod 600") as caught:
        read_secret_file(path)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe" + CANARY.encode(), CANARY.encode() * 300])
def test_a_secret_file_that_is_not_a_short_text_is_refused_and_its_content_not_shown(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(Refused, match="not a text") as caught:
        read_secret_file(secret(tmp_path / "s", content))
    assert CANARY not in str(caught.value)


def test_a_missing_secret_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read_secret_file(tmp_path / "missing")
    with pytest.raises(Refused, match="cannot be read"):
        read_secret_file(tmp_path)


def test_a_secret_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(Refused, match="not a text"):
        read_secret_file(tmp_path / "pipe")


def test_the_passphrase_comes_from_credential_then_file_then_prompt(tmp_path: Path) -> None:
    file = secret(tmp_path / "passphrase", b"from the file")
    credential = secret(tmp_path / "keystore-passphrase", b"from systemd", mode=0o440)
    with_file = load(tmp_path, f'[keystore]\npassphrase_file = "{file}"\n')
    without = load(tmp_path)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert passphrase_file(with_file, environ, can_ask=True) == SecretFile(credential, private=False)
    credential.unlink()
    assert passphrase_file(with_file, environ, can_ask=True) == SecretFile(file, private=True)
    assert passphrase_file(without, environ, can_ask=True) is None
    with pytest.raises(Refused) as caught:
        passphrase_file(without, environ, can_ask=False)
    assert caught.value.name == "keystore_locked"


def test_the_pin_of_an_hsm_comes_from_its_own_credential_file_or_prompt(tmp_path: Path) -> None:
    file = secret(tmp_path / "pin", b"from the file")
    secret(tmp_path / "keystore-passphrase", b"from systemd")
    with_file = load(tmp_path, f'[keystore]\npin_file = "{file}"\n')
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert passphrase_file(with_file, environ, can_ask=True, in_hsm=True) == SecretFile(file, private=True)
    credential = secret(tmp_path / "keystore-pin", b"from systemd", mode=0o440)
    assert passphrase_file(with_file, environ, can_ask=True, in_hsm=True) == SecretFile(credential, private=False)
    assert passphrase_file(load(tmp_path), {}, can_ask=True, in_hsm=True) is None
    with pytest.raises(Refused, match="no systemd credential keystore-pin"):
        passphrase_file(load(tmp_path), {}, can_ask=False, in_hsm=True)


def test_an_unreadable_systemd_credential_is_an_error_and_not_skipped(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / ("x" * 5000))}
    with pytest.raises(Refused, match=r"cannot read the systemd credential .*: File name too long") as caught:
        passphrase_file(load(tmp_path), environ, can_ask=True)
    assert caught.value.name == "keystore_locked"


def test_a_passphrase_file_that_cannot_be_read_is_an_error_and_not_skipped(tmp_path: Path) -> None:
    settings = load(tmp_path, f'[keystore]\npassphrase_file = "{tmp_path / "missing"}"\n')
    found = passphrase_file(settings, {}, can_ask=True)
    assert found == SecretFile(tmp_path / "missing", private=True)
    with pytest.raises(Refused, match="cannot be read"):
        read_secret_file(found.path, private=found.private)


def test_a_systemd_credential_may_be_readable_by_its_group(tmp_path: Path) -> None:
    credential = secret(tmp_path / "keystore-passphrase", b"from systemd", mode=0o440)
    assert read_secret_file(credential, private=False) == "from systemd"
    with pytest.raises(Refused, match="open to others"):
        read_secret_file(credential)


def test_ada_and_each_token_with_limits_have_transaction_and_day_caps(tmp_path: Path) -> None:
    token, other = "ab" * 28 + "4c", "cd" * 28 + "4d"
    assets = f'''
[[limits.assets]]
asset = "{token}"
per_payment = "5"
per_day = "20"
[[limits.assets]]
asset = "{other}"
per_payment = "5"
per_day = "20"
per_transaction = "30"
'''
    limits = load(tmp_path, assets).limits
    assert limits.caps == {"lovelace": 20_000_000, token: 20, other: 30}
    assert limits.day_caps == {"lovelace": 40_000_000, token: 40, other: 60}


@pytest.mark.parametrize(
    ("keys", "once_ada", "day_ada"),
    [
        ('per_transaction = "7 ADA"', 7, 40),
        ('per_transaction = "700 ADA"', 700, 1400),
        ('per_day = "50 ADA"', 50, 100),
        ('per_day = "50 ADA"\nsigned_per_day = "60 ADA"', 50, 60),
        ('per_transaction = "700 ADA"\nsigned_per_day = "900 ADA"', 700, 900),
    ],
)
def test_the_signers_caps_follow_from_the_daily_limit_unless_set(
    tmp_path: Path, keys: str, once_ada: int, day_ada: int
) -> None:
    limits = load(tmp_path, f"[limits]\n{keys}\n").limits
    assert (limits.caps, limits.day_caps) == ({"lovelace": once_ada * 10**6}, {"lovelace": day_ada * 10**6})


def test_the_passphrase_is_never_taken_from_the_environment(tmp_path: Path) -> None:
    detail = refusal(tmp_path, PAYAGENT_KEYSTORE__PASSPHRASE=CANARY)
    assert "keystore.passphrase: unknown key. Did you mean passphrase_file?" in detail
    assert CANARY not in detail


# Top-ups

TOPUP = '[merchants.t]\norigin = "https://a.example"\n[merchants.t.topup]\n'


def test_automatic_top_ups_are_off_until_a_level_is_set(tmp_path: Path) -> None:
    plain = load(tmp_path, TOPUP).merchants["t"].topup
    assert (plain.auto_below, plain.path, plain.per_day_lovelace) == (("calls", 0), "", None)
    text = TOPUP + 'path = "/topup"\nauto_below = 20\nauto_to = 100\nper_day = "20 ADA"'
    calls = load(tmp_path, text).merchants["t"].topup
    assert (calls.auto_below, calls.auto_to, calls.per_day_lovelace) == (("calls", 20), ("calls", 100), 20_000_000)
    ada = load(tmp_path, TOPUP + 'path = "/topup"\nauto_below = "5 ADA"\nauto_to = "20 ADA"').merchants["t"].topup
    assert (ada.auto_below, ada.auto_to) == (("lovelace", 5_000_000), ("lovelace", 20_000_000))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("auto_below = 20\nauto_to = 100", "auto_below needs path"),
        ('path = "/topup"\nauto_below = 20\nauto_to = 20', "auto_to must be more than auto_below"),
        ('path = "/topup"\nauto_below = 20\nauto_to = "100 ADA"', "in the same unit"),
        ('path = "topup"', "merchants.t.topup.path"),
        ("auto_below = 2.5", "write a whole number of calls"),
        ("auto_per_day_max = 0", "merchants.t.topup.auto_per_day_max"),
        ("abvoe = 3", "merchants.t.topup.abvoe: unknown key"),
        ("auto_belwo = 3", "Did you mean auto_below?"),
    ],
)
def test_an_invalid_top_up_setting_is_refused_with_its_reason(tmp_path: Path, keys: str, told: str) -> None:
    assert told in refusal(tmp_path, TOPUP + keys)
