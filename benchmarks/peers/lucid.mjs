// lucid-evolution: `newTx`, `pay.ToAddress`, `complete`, `sign`, with its own choice of coins.
import { CML, Lucid, slotToUnixTime } from "@lucid-evolution/lucid";

import { serve } from "./repeat.mjs";

const held = ({ lovelace, assets }) =>
  Object.fromEntries([["lovelace", BigInt(lovelace)], ...assets.map(([name, units]) => [name, BigInt(units)])]);

// The parameters that a payment does not meet are there because the builder asks for them.
const parametersOf = (given) => ({
  minFeeA: given.min_fee_a,
  minFeeB: given.min_fee_b,
  maxTxSize: given.max_tx_size,
  maxValSize: given.max_value_size,
  coinsPerUtxoByte: BigInt(given.coins_per_utxo_byte),
  keyDeposit: 2_000_000n,
  poolDeposit: 500_000_000n,
  drepDeposit: 500_000_000n,
  govActionDeposit: 100_000_000_000n,
  priceMem: 0.0577,
  priceStep: 0.0000721,
  maxTxExMem: 14_000_000n,
  maxTxExSteps: 10_000_000_000n,
  collateralPercentage: 150,
  maxCollateralInputs: 3,
  minFeeRefScriptCostPerByte: 15,
  costModels: { PlutusV1: [], PlutusV2: [], PlutusV3: [] },
});

async function prepare(job) {
  const network = "Preview";
  const provider = { getProtocolParameters: async () => parametersOf(job.parameters) }; // asked once, at the start
  const lucid = await Lucid(provider, network);
  const coins = job.coins.map((coin) => ({
    txHash: coin.tx_id,
    outputIndex: coin.index,
    address: job.change,
    assets: held(coin),
  }));
  lucid.selectWallet.fromAddress(job.change, coins);
  const payments = job.outputs.map((output) => [output.address, held(output)]);
  const key = CML.PrivateKey.from_extended_bytes(Buffer.from(job.key, "hex")).to_bech32();
  const until = slotToUnixTime(network, job.ttl_slot);

  return async () => {
    let tx = lucid.newTx();
    for (const [address, assets] of payments) tx = tx.pay.ToAddress(address, assets);
    const built = await tx.validTo(until).complete({ presetWalletInputs: coins });
    const signed = await built.sign.withPrivateKey(key).complete();
    return signed.toCBOR();
  };
}

await serve("@lucid-evolution/lucid", prepare);
