// A real network for tests: `hp dev` around test/contract.py. It ends with this process, however that ends.

import { execFile, spawn } from "node:child_process";
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const START_MS = 60_000;
const HP = process.env.HP ?? fileURLToPath(new URL("../../../target/debug/hp", import.meta.url));

/** `{urls, pages, stop}` of `count` nodes: where users connect, and where their pages are, if they have any. */
export async function start(count) {
  const folder = await mkdtemp(join(tmpdir(), "hotpocket-js-"));
  await mkdir(join(folder, "bin"));
  await copyFile(new URL("contract.py", import.meta.url), join(folder, "bin/contract"));
  const dev = spawn(HP, ["dev", folder, "--nodes", String(count), "--no-bus"], { stdio: ["ignore", "pipe", "pipe"], detached: false });
  const ended = new Promise((resolve) => dev.once("close", resolve).once("error", resolve));
  const stop = async () => {
    dev.kill("SIGINT");
    await ended;
    await rm(folder, { recursive: true, force: true });
  };
  const said = [];
  const nodes = new Promise((resolve, reject) => {
    const found = new Map();
    for (const stream of [dev.stderr, dev.stdout]) {
      createInterface(stream).on("line", (line) => {
        said.push(line);
        const [, url, place] = line.match(/^ *node \d+ +(wss?:\/\/\S+).* (\/\S+)/) ?? [];
        if (url && found.set(url, place).size === count) resolve(found);
      });
    }
    const timer = setTimeout(() => reject(new Error(`no network in ${START_MS} ms:\n${said.join("\n")}`)), START_MS);
    ended.then(() => reject(new Error(`${HP} dev ended:\n${said.join("\n")}`))).finally(() => clearTimeout(timer));
    timer.unref();
  });
  try {
    const found = await nodes;
    return { urls: [...found.keys()], pages: await Promise.all([...found.values()].map(page)), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** `{url, page, stop}` of one node that speaks TLS by a certificate of its own, and whose outputs are final when they are settled. */
export async function startSettling() {
  const folder = await mkdtemp(join(tmpdir(), "hotpocket-js-")), node = join(folder, "node"), cfg = join(node, "cfg/hp.cfg");
  const run = (args) => new Promise((resolve, reject) => execFile(HP, args, (error, stdout, stderr) => (error ? reject(new Error(stderr)) : resolve(stdout))));
  await run(["new", node, "--pubport", "0", "--peerport", "0", "--tls"]);
  await copyFile(new URL("contract.py", import.meta.url), join(node, "bin/contract"));
  const bus = await freePort();
  const changes = [
    ['# listen = "127.0.0.1:5001"', 'listen = "127.0.0.1:0"'], ['\nlisten = "127.0.0.1:5000"', `\nlisten = "127.0.0.1:${bus}"`],
    ['mode = "off"', 'mode = "embedded"'], ['network = "mainnet"', 'network = "development"'], ['execute = "closed"', 'execute = "settled"'],
    ["settle_every = 1000", "settle_every = 3"], ["settle_max_delay_s = 600", "settle_max_delay_s = 1"], ["roundtime = 1000", "roundtime = 300"],
  ];
  let text = await readFile(cfg, "utf8");
  for (const [from, to] of changes) {
    if (!text.includes(from)) throw new Error(`${from} is not in what hp new writes`);
    text = text.replace(from, to);
  }
  await writeFile(cfg, text);
  const child = spawn(HP, ["run", "--child", node], { stdio: ["pipe", "pipe", "pipe"] });
  const said = [];
  createInterface(child.stderr).on("line", (line) => said.push(line));
  const ended = new Promise((resolve) => child.once("close", resolve).once("error", resolve));
  const stop = async () => {
    child.kill("SIGINT");
    await ended;
    await rm(folder, { recursive: true, force: true });
  };
  const line = new Promise((resolve, reject) => {
    createInterface(child.stdout).once("line", resolve);
    const timer = setTimeout(() => reject(new Error(`no node in ${START_MS} ms:\n${said.join("\n")}`)), START_MS);
    ended.then(() => reject(new Error(`${HP} run ended:\n${said.join("\n")}`))).finally(() => clearTimeout(timer));
    timer.unref();
  });
  try {
    const { user_address, http_url } = JSON.parse(await line);
    return { url: `wss://${user_address}`, page: http_url, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

const freePort = () => new Promise((resolve) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

const page = (place) => new Promise((resolve, reject) => {
  execFile(HP, ["status", place, "--json"], (error, stdout) => (error ? reject(error) : resolve(JSON.parse(stdout).http_url)));
});
