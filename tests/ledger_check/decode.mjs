// What the Evolution SDK reads in transactions: a line of hex in, a line of JSON out, in order. Amounts are text.
// Fees and minimums are for mainnet's parameters.
import { createInterface } from "node:readline";
import { blake2b } from "@noble/hashes/blake2.js";
import { Address, Ed25519Signature, FeeValidation, Transaction, VKey } from "@evolution-sdk/evolution";
import { calculateMinimumUtxoLovelace } from "@evolution-sdk/evolution/sdk/builders/internal/txBuilder";
import { Effect } from "effect";

const PARAMETERS = { minFeeCoefficient: 44n, minFeeConstant: 155381n };
const COINS_PER_BYTE = 4310n;

const hex = (bytes) => Buffer.from(bytes).toString("hex");

const output = ({ address, assets }) => ({
  address: Address.toHex(address),
  lovelace: assets.lovelace,
  assets: Object.fromEntries(
    [...(assets.multiAsset?.map ?? [])].flatMap(([policy, names]) =>
      [...names].map(([name, units]) => [hex(policy.hash) + hex(name.bytes), units]),
    ),
  ),
  minimum: Effect.runSync(calculateMinimumUtxoLovelace({ address, assets, coinsPerUtxoByte: COINS_PER_BYTE })),
});

function decoded(raw) {
  const tx = Transaction.fromCBORBytes(raw);
  const id = blake2b(Transaction.extractBodyBytes(raw), { dkLen: 32 });
  const { fee, networkId, outputs } = tx.body;
  const networks = outputs.map((one) => one.address.networkId);
  const isGood = ({ vkey, signature }) => VKey.verify(vkey, id, Ed25519Signature.toBytes(signature));
  return {
    tx_id: hex(id),
    signers: (tx.witnessSet.vkeyWitnesses ?? []).filter(isGood).map(({ vkey }) => VKey.toHex(vkey)),
    networks: [...new Set(networkId === undefined ? networks : [networkId, ...networks])],
    fee,
    minimum_fee: FeeValidation.validateTransactionFee(tx, PARAMETERS).minRequiredFee,
    outputs: outputs.map(output),
    encoded: Transaction.toCBORHex(tx),
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const answer = decoded(Uint8Array.from(Buffer.from(line, "hex")));
  console.log(JSON.stringify(answer, (_, value) => (typeof value === "bigint" ? String(value) : value)));
}
