// A real network for tests: `hp dev` around test/contract.py. It ends with this process, however that ends.

import { execFile, spawn } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm } from "node:fs/promises";
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

const page = (place) => new Promise((resolve, reject) => {
  execFile(HP, ["status", place, "--json"], (error, stdout) => (error ? reject(error) : resolve(JSON.parse(stdout).http_url)));
});
