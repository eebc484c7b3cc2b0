"""A program in another language pays with a changed base URL and nothing else."""

import asyncio
import shutil
from pathlib import Path

import pytest
from kit.agent import ADA, World
from kit.proxy import blocks, place

NODE = shutil.which("node")
PROGRAM = """
const base = process.argv[2];
const answer = await fetch(`${base}/chat`, {
  method: "POST",
  headers: { "content-type": "application/json", authorization: "Bearer sk-for-the-merchant" },
  body: JSON.stringify({ message: "hello from node", stream: true }),
});
let text = "", pieces = 0;
for await (const piece of answer.body) { text += new TextDecoder().decode(piece); pieces += 1; }
console.log(JSON.stringify({ status: answer.status, last: text.trimEnd().split("\\n").at(-1), pieces }));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed: the proxy was not tried from another language")
async def test_a_node_program_pays_with_fetch(world: World, tmp_path: Path) -> None:
    program = tmp_path / "pays.mjs"
    program.write_text(PROGRAM)
    world.fund(*[20 * ADA] * 3)
    async with place(world) as at, blocks(at.run):
        base = f"{at.api.url}/proxy/~{at.token}/devnet"
        node = await asyncio.create_subprocess_exec(
            str(NODE), str(program), base, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(node.communicate(), 60)
        assert node.returncode == 0, err.decode()
        assert b'"status":200,"last":"data: [DONE]"' in out
        await at.until_delivered()
