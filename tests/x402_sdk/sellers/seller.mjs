// A seller of the official TypeScript SDK, with the middleware for Express or for Hono. The argument is JSON: the
// framework, the facilitator's URL, what a 402 asks, and whether the first paid answer is lost. Writes its URL as JSON.
//
// Its scheme `exact` on Cardano is its own: the SDK has none.
import { createServer } from "node:http";
import { getRequestListener } from "@hono/node-server";
import { HTTPFacilitatorClient, x402ResourceServer } from "@x402/core/server";
import * as forExpress from "@x402/express";
import { declareDiscoveryExtension } from "@x402/extensions/bazaar";
import {
  declarePaymentIdentifierExtension,
  PAYMENT_IDENTIFIER,
  paymentIdentifierResourceServerExtension,
} from "@x402/extensions/payment-identifier";
import * as forHono from "@x402/hono";
import express from "express";
import { Hono } from "hono";

const { framework, facilitator, network, payTo, price, extra, loses } = JSON.parse(process.argv[2]);

const scheme = {
  scheme: "exact",
  defaultAssetTransferMethod: "default",
  paymentFlows: { default: { supported: ["authorization"], default: "authorization" } },
  parsePrice: async (given) => given,
  enhancePaymentRequirements: async (requirements) => ({
    ...requirements,
    extra: { areFeesSponsored: false, ...requirements.extra },
  }),
};
const server = new x402ResourceServer(new HTTPFacilitatorClient({ url: facilitator }))
  .register(network, scheme)
  .registerExtension(paymentIdentifierResourceServerExtension);
const accepts = { scheme: "exact", network, payTo, price, maxTimeoutSeconds: 300, extra };
const extensions = {
  ...declareDiscoveryExtension({ bodyType: "json", input: { message: "hello" }, inputSchema: { properties: { message: { type: "string" } } } }),
  [PAYMENT_IDENTIFIER]: declarePaymentIdentifierExtension(true),
};
const routes = { "POST /chat": { accepts, description: "A paid answer", mimeType: "application/json", extensions } };

const frameworks = {
  express() {
    const app = express();
    app.use(forExpress.paymentMiddleware(routes, server));
    app.post("/chat", express.json({ type: () => true }), (request, response) => response.json({ reply: request.body.message }));
    return app;
  },
  hono() {
    const app = new Hono();
    app.use(forHono.paymentMiddleware(routes, server));
    app.post("/chat", async (context) => context.json({ reply: (await context.req.json()).message }));
    return getRequestListener(app.fetch);
  },
};

let isLost = !loses;
const answer = frameworks[framework]();
const http = createServer((request, response) => {
  if (!isLost && request.headers["payment-signature"]) {
    isLost = true;
    // An answer begins only once its payment is settled.
    response.write = response.end = () => response.socket.destroy();
  }
  answer(request, response);
});
http.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ url: `http://127.0.0.1:${http.address().port}` })));
