// A real network for tests: `hp dev` around test/contract.py. It ends with this process, however that ends.

import { spawn } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const START_MS = 60_000;
const HP = process.env.HP ?? fileURLToPath(new URL("../../../target/debug/hp", import.meta.url));

/** `{urls, stop}` of `count` nodes. */
export async function start(count) {
  const folder = await mkdtemp(join(tmpdir(), "hotpocket-js-"));
  await mkdir(join(folder, "bin"));
  await copyFile(new URL("contract.py", import.meta.url), join(folder, "bin/contract"));
  const dev = spawn(HP, ["dev", folder, "--nodes", String(count), "--no-bus"], { stdio: ["ignore", "pipe", "pipe"], detached: false });
  const ended = new Promise((resolve) => dev.once("close", resolve).once("error", resolve));
  const stop = async () => {
    dev.kill("SIGINT");
    await ended;
    await rm(folder, { recursive: true });
  };
  const said = [];
  const urls = new Promise((resolve, reject) => {
    const found = new Set();
    for (const stream of [dev.stderr, dev.stdout]) {
      createInterface(stream).on("line", (line) => {
        said.push(line);
        const url = line.match(/^ *node \d+ +(wss?:\/\/\S+)/)?.[1];
        if (url && found.add(url).size === count) resolve([...found]);
      });
    }
    const timer = setTimeout(() => reject(new Error(`no network in ${START_MS} ms:\n${said.join("\n")}`)), START_MS);
    ended.then(() => reject(new Error(`${HP} dev ended:\n${said.join("\n")}`))).finally(() => clearTimeout(timer));
    timer.unref();
  });
  try {
    return { urls: await urls, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
