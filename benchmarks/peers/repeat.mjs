// What the peers in JavaScript share: the job read, the lines told, the builds repeated and timed.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

async function timed(build) {
  const start = performance.now();
  const tx = await build();
  return [performance.now() - start, tx];
}

async function repeated(build, job) {
  const ms = [];
  let took, tx;
  const end = performance.now() + job.most_s * 1000;
  while (ms.length < job.rounds && (ms.length === 0 || performance.now() < end)) {
    [took, tx] = await timed(build);
    ms.push(took);
  }
  return { ms, tx };
}

function versionOf(name) {
  const main = createRequire(import.meta.url).resolve(name);
  const folder = main.slice(0, main.indexOf(`node_modules/${name}/`)) + `node_modules/${name}`;
  return JSON.parse(readFileSync(`${folder}/package.json`, "utf8")).version;
}

// `prepare` makes of a job the function that builds and signs, and gives the bytes in hex.
export async function serve(name, prepare) {
  console.log = console.error; // standard output belongs to the lines
  try {
    const job = JSON.parse(readFileSync(0, "utf8"));
    const build = await prepare(job);
    tell({ ready: `${name} ${versionOf(name)}, Node ${process.versions.node}` });
    const [took] = await timed(build);
    tell({ built: took });
    tell(await repeated(build, job));
  } catch (thrown) {
    tell({ error: `${thrown?.message ?? thrown}`.slice(0, 300) });
  }
}
