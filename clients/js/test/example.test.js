// The runnable example, as a user runs it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { start } from "./network.js";

const example = fileURLToPath(new URL("../example.js", import.meta.url));
const run = (...args) => new Promise((resolve) => {
  execFile(process.execPath, ["--no-warnings", "--experimental-websocket", example, ...args], (error, stdout, stderr) => resolve({ code: error?.code ?? 0, stdout, stderr }));
});

test("the example prints the proven answer alone, and refuses another chain", { timeout: 90_000 }, async () => {
  const network = await start(1);
  try {
    const nowhere = "ws://127.0.0.1:9";
    const { code, stdout, stderr } = await run([nowhere, ...network.urls].join(), "hello");
    assert.deepEqual([code, stdout], [0, "hello"], stderr);
    assert.match(stderr, /^accepted in ledger \d+ after \d+ ms\n1 of 1 members signed for this:\n$/);
    const other = await run(network.urls[0], "hello", "01".repeat(32));
    assert.deepEqual([other.code, other.stdout], [1, ""]);
    assert.match(other.stderr, /^other_network: the node is of chain /);
    assert.equal((await run()).code, 2);
  } finally {
    await network.stop();
  }
});
