// An official TypeScript client of `payagent mcp`. The argument is JSON: the client's package, the protocol version,
// the server (a URL, or a command with its environment), and the tool call. Writes what it got as JSON.

const asked = JSON.parse(process.argv[2]);
const { Client, StdioClientTransport, StreamableHTTPClientTransport } =
  asked.package === "sdk"
    ? {
        ...(await import("@modelcontextprotocol/sdk/client/index.js")),
        ...(await import("@modelcontextprotocol/sdk/client/stdio.js")),
        ...(await import("@modelcontextprotocol/sdk/client/streamableHttp.js")),
      }
    : { ...(await import("@modelcontextprotocol/client")), ...(await import("@modelcontextprotocol/client/stdio")) };

const transport = asked.url
  ? new StreamableHTTPClientTransport(new URL(asked.url))
  : new StdioClientTransport({ command: asked.command[0], args: asked.command.slice(1), env: asked.env });
const negotiation = asked.pin ? { versionNegotiation: { mode: { pin: asked.pin } } } : {};
const client = new Client({ name: "peer", version: "1" }, negotiation);
await client.connect(transport);
const { tools } = await client.listTools();
const result = await client.callTool(asked.call);
const ledger = await client.readResource({ uri: "payagent://ledger" });
const prompt = await client.getPrompt({ name: "spend_report" });
const version = client.getNegotiatedProtocolVersion?.();
console.log(JSON.stringify({ version, tools: tools.map((tool) => tool.name), result, ledger, prompt }));
await client.close();
