// cardano-serialization-lib: `TransactionBuilder` with its own choice of coins (CIP-2).
import * as csl from "@emurgo/cardano-serialization-lib-nodejs";

import { serve } from "./repeat.mjs";

const bytes = (hex) => Buffer.from(hex, "hex");
const number = (value) => csl.BigNum.from_str(String(value));

function valueOf({ lovelace, assets }) {
  const value = csl.Value.new(number(lovelace));
  if (assets.length === 0) return value;
  const multiasset = csl.MultiAsset.new();
  for (const [name, units] of assets) {
    const policy = csl.ScriptHash.from_bytes(bytes(name.slice(0, 56)));
    multiasset.set_asset(policy, csl.AssetName.new(bytes(name.slice(56))), number(units));
  }
  value.set_multiasset(multiasset);
  return value;
}

function configured(parameters) {
  return csl.TransactionBuilderConfigBuilder.new()
    .fee_algo(csl.LinearFee.new(number(parameters.min_fee_a), number(parameters.min_fee_b)))
    .coins_per_utxo_byte(number(parameters.coins_per_utxo_byte))
    .pool_deposit(number(500_000_000))
    .key_deposit(number(2_000_000))
    .max_value_size(parameters.max_value_size)
    .max_tx_size(parameters.max_tx_size)
    .build();
}

function prepare(job) {
  const change = csl.Address.from_bech32(job.change);
  const coins = csl.TransactionUnspentOutputs.new();
  for (const coin of job.coins) {
    const spent = csl.TransactionInput.new(csl.TransactionHash.from_bytes(bytes(coin.tx_id)), coin.index);
    coins.add(csl.TransactionUnspentOutput.new(spent, csl.TransactionOutput.new(change, valueOf(coin))));
  }
  const payments = job.outputs.map((output) =>
    csl.TransactionOutput.new(csl.Address.from_bech32(output.address), valueOf(output)),
  );
  const config = configured(job.parameters);
  const key = csl.PrivateKey.from_extended_bytes(bytes(job.key));
  // the cheaper of its two largest-first ways where there is a choice
  const { LargestFirst, LargestFirstMultiAsset } = csl.CoinSelectionStrategyCIP2;
  const strategy = job.outputs.some((output) => output.assets.length) ? LargestFirstMultiAsset : LargestFirst;

  return () => {
    const builder = csl.TransactionBuilder.new(config);
    for (const payment of payments) builder.add_output(payment);
    builder.set_ttl_bignum(number(job.ttl_slot));
    builder.add_inputs_from(coins, strategy);
    builder.add_change_if_needed(change);
    const body = builder.build();
    const tx = csl.FixedTransaction.new_from_body_bytes(body.to_bytes());
    tx.sign_and_add_vkey_signature(key);
    const hex = tx.to_hex();
    for (const made of [builder, body, tx]) made.free();
    return hex;
  };
}

await serve("@emurgo/cardano-serialization-lib-nodejs", prepare);
