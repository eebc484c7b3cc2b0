"""`payagent wallet send --all`: an asset that may not be sent does not keep the rest back."""

from kit.cli import Shop, running, until

from payagent.devnet.merchant import role_address


def test_send_all_leaves_behind_only_a_strangers_token(closed_shop: Shop) -> None:
    shop, stranger = closed_shop, "5d" * 28
    address = shop.made["address"]
    shop.control("faucet", address=address, lovelace="9000000")
    shop.control("faucet", address=address, lovelace="1500000", assets={stranger: "1"})
    with running(shop):
        until(lambda: len(shop.payagent("wallet", "utxos").json["utxos"]) == 2, "no deposit")
        sent = shop.payagent("wallet", "send", role_address("creator").text, "--all", "--yes")
        assert sent.code == 0, sent.err
        assert sent.json["left_behind"]["assets"] == [stranger]
        assert "Left behind: 1 UTxO with 1.5 ADA" in sent.err
        until(lambda: shop.payments()[0]["state"] == "confirmed", "not confirmed")
        refused = shop.payagent("wallet", "send", role_address("creator").text, "--all", "--yes")
        assert (refused.code, refused.problem) == (6, "asset_not_allowed")
