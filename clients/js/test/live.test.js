// The client against a real network of three nodes.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { connect, generateKey } from "../hotpocket.js";
import { start } from "./network.js";

const DEADLINE = { timeout: 60_000 };
let network;
before(async () => { network = await start(3); }, { timeout: 90_000 });
after(() => network?.stop());

async function talk(work, nodes = network.urls, options = {}) {
  const client = await connect(nodes, await generateKey(), options);
  try {
    await work(client);
  } finally {
    client.close();
  }
}

test("an input is accepted, and its output proven by a quorum", DEADLINE, () => talk(async (client) => {
  const pushed = new Promise((resolve) => client.addEventListener("output", ({ detail }) => resolve(detail), { once: true }));
  const { nonce, accepted, output } = client.submit("hello");
  const where = await accepted;
  assert.equal(where.nonce, nonce);
  const { seq, ledger, text, payload, signers, members } = await output;
  assert.deepEqual([seq, ledger, text], [where.seq, where.ledger, "hello"]);
  assert.deepEqual(payload, new TextEncoder().encode("hello"));
  assert.ok(signers >= client.network.quorum && members === 3, `${signers} of ${members}`);
  assert.equal((await pushed).seq, seq);

  const { seq: lcl } = await client.query("lcl");
  assert.ok(lcl >= seq);
  const header = await client.ledger(seq);
  assert.deepEqual([header.hash, header.n_inputs, header.chain_id], [ledger, 1, client.network.chain]);
  assert.equal(await client.ledger(seq + 100_000), null);
  const past = await client.outputsSince(0);
  assert.deepEqual(past.outputs.map(({ text }) => text), ["hello"]);
  assert.equal((await client.query("input", { nonce })).status, "accepted");
}));

test("large bytes that are no text come back as they were", DEADLINE, () => talk(async (client) => {
  const bytes = Uint8Array.from({ length: 300_000 }, (_, at) => (at * 7919) & 255);
  const { payload, text } = await client.submit(bytes).output;
  assert.equal(text, null);
  assert.ok(Buffer.from(payload).equals(Buffer.from(bytes)));
}));

test("a run that failed is told with its proof, and one without output as null", DEADLINE, () => talk(async (client) => {
  assert.equal(await client.submit("quiet").output, null);
  const { accepted, output } = client.submit("fail");
  await accepted;
  await assert.rejects(output, ({ code, message, proven }) => code === "contract_failed" && /exit code 3/.test(message) && proven === true);
  assert.equal((await client.outputsSince(0)).failed[0].proven, true);
}));

test("the contract answers a question on the spot", DEADLINE, () => talk(async (client) => {
  await client.submit("x").output;
  assert.equal((await client.read("what?")).text, "what?");
  await assert.rejects(client.read("fail"), { code: "contract_failed", message: "exit code 3" });
}));

test("a lost connection goes on at another node, with nothing lost or done twice", DEADLINE, () => {
  const sockets = [];
  class Watched extends globalThis.WebSocket {
    constructor(url) {
      super(url);
      sockets.push(this);
    }
  }
  return talk(async (client) => {
    const told = [];
    client.addEventListener("output", ({ detail }) => told.push(detail.text));
    await client.submit("1").output;
    sockets.at(-1).close();
    const { accepted, output } = client.submit("2");
    await accepted;
    assert.equal((await output).text, "2");
    assert.equal(client.url, network.urls[1]);
    sockets.at(-1).close();
    assert.equal((await client.submit("3").output).text, "3");
    assert.equal(client.url, network.urls[2]);
    assert.deepEqual(told, ["1", "2", "3"]);
  }, network.urls, { WebSocket: Watched });
});
