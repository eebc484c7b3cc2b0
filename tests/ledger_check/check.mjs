// One long-lived process around the scalus ledger: a line of JSON in, a line of JSON out, in order.
//
//   {"op": "open", "network": 0|1, "utxos": hex of a CBOR map input -> output}   starts a new state
//   {"op": "submit", "tx": hex, "slot": n}                                       applies one transaction to it
//
// The answer is {"error": null} or {"error": text}. scalus bakes in mainnet's parameters, and takes the network
// from the slot configuration: mainnet's means network 1, any other means a test network.
import { createInterface } from "node:readline";
import scalus from "scalus";

console.log = console.error; // standard output belongs to the answers

let emulator = null;

const bytes = (hex) => Buffer.from(hex, "hex");

const operations = {
  open({ network, utxos }) {
    const slots = network === 1 ? scalus.SlotConfig.mainnet : scalus.SlotConfig.preview;
    emulator = new scalus.Emulator(bytes(utxos), slots);
    return null;
  },
  submit({ tx, slot }) {
    emulator.setSlot(slot);
    const result = emulator.submitTx(bytes(tx));
    return result.isSuccess ? null : (result.error ?? "refused without a reason");
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let error;
  try {
    error = operations[request.op](request);
  } catch (thrown) {
    error = `thrown: ${thrown?.message ?? thrown}`;
  }
  process.stdout.write(`${JSON.stringify({ error })}\n`);
}
