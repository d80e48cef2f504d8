// The client against nodes that this file plays: what it does when they refuse, lie, vanish or say something new.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { once } from "node:events";
import { test } from "node:test";
import { connect, importKey } from "../hotpocket.js";

const golden = async (name) => JSON.parse(await readFile(new URL(`../../../tests/golden/signed/${name}.json`, import.meta.url), "utf8"));
const key = await importKey("09".repeat(32));
const welcome = await golden("welcome");
const ID = "01".repeat(32);

// A network whose nodes answer by `answers[url](frame, socket)`; a node without an answer does not exist.
function network(answers) {
  return class extends EventTarget {
    readyState = 1;
    sent = [];
    constructor(url) {
      super();
      this.url = url;
      queueMicrotask(() => (answers[url] ? this.say({ type: "public_challenge", hotpocket: 0.1, challenge: "ab".repeat(16) }) : this.close()));
    }
    say(frame) {
      this.dispatchEvent(new MessageEvent("message", { data: JSON.stringify(frame) }));
    }
    send(text) {
      const frame = JSON.parse(text);
      this.sent.push(text);
      if (this.readyState === 1) answers[this.url](frame, this, text);
    }
    close() {
      if (this.readyState === 3) return;
      this.readyState = 3;
      queueMicrotask(() => this.dispatchEvent(new Event("close")));
    }
  };
}
// A node that takes the connection and leaves the rest to `more`.
const node = (more, says = welcome) => (frame, socket, text) => (frame.type === "helo" ? socket.say(says) : more?.(frame, socket, text));
const heard = async (client, type) => (await once(client, type))[0].detail;

test("an input that is refused rejects with the reason, and another session's word about it does not count", async () => {
  const WebSocket = network({ a: node(({ nonce }, socket) => {
    socket.say({ type: "status", nonce, id: ID, status: "accepted", seq: 4, ledger: ID });
    socket.say({ type: "status", nonce, status: "rejected", reason: "expired", message: "too late" });
  }) });
  const client = await connect("a", key, { WebSocket });
  const { accepted, output } = client.submit("x");
  await assert.rejects(accepted, { code: "expired", message: "too late" });
  await assert.rejects(output, { code: "expired" });
  client.close();
});

test("a word that the client does not know is passed on, and a settlement only when it is proven", async () => {
  let socket;
  const client = await connect("a", key, { WebSocket: network({ a: node((_, from) => (socket = from)) }) });
  client.addEventListener("settled", () => assert.fail("nobody signed for it"));
  const [unknown, notice] = [heard(client, "frame"), heard(client, "notice")];
  client.query("lcl").catch(() => {});
  socket.say({ type: "weather", is: "fine" });
  const { ledger } = await golden("answer-ledger");
  socket.say({ type: "settled", first: 1, last: 4, tx: ID, ch: ID, confirmed_length: 1, recorded_in: 5, proof: { by: "header", ...ledger } });
  assert.deepEqual(await unknown, { type: "weather", is: "fine" });
  assert.match((await notice).message, /records no settlement/);
  assert.deepEqual(client.nodes, []);
  client.close();
});

test("a node that lies about an output is left for good, and the same bytes go to the next one", async () => {
  const lie = { ...(await golden("output-by-results")), payload: "bGllcw==" };
  const inputs = [], opened = [];
  const take = (answer) => node((frame, socket, text) => {
    if (frame.type !== "input") return socket.say({ ...frame, type: "answer", to: 5, more: false, kept_from: 1, missing: [], failed: [], outputs: [] });
    inputs.push(text);
    answer(frame, socket);
  });
  const WebSocket = network({
    liar: take((_, socket) => socket.say(lie)),
    honest: take(({ nonce }, socket) => socket.say({ type: "status", nonce, status: "accepted", seq: 6, ledger: ID })),
  });
  const client = await connect(["liar", "honest"], key, { WebSocket, since: 3 });
  client.addEventListener("state", ({ detail }) => detail.state === "connecting" && opened.push(detail.url));
  client.addEventListener("output", () => assert.fail("a lie is told"));
  const notice = heard(client, "notice");
  const { accepted } = client.submit("hello");
  assert.match((await notice).message, /liar: the output is not among the agreed ones/);
  assert.equal((await accepted).seq, 6);
  assert.equal(inputs.length, 2);
  assert.equal(inputs[0], inputs[1]);
  assert.deepEqual([client.nodes, client.url, opened], [["honest"], "honest", ["honest"]]);
  client.close();
});

test("members that nobody proves are refused on the way", async () => {
  const other = { ...welcome, unl: welcome.unl.slice(1) };
  let lost;
  const noChange = ({ what, since }, socket) => what === "unl" && socket.say({ type: "answer", what, since, changes: [], more: false });
  const WebSocket = network({ a: node((_, socket) => (lost ??= socket).close()), b: node(noChange, other) });
  const client = await connect(["a", "b"], key, { WebSocket });
  const notice = heard(client, "notice");
  client.query("lcl").catch(() => {});
  assert.equal((await notice).code, "other_network");
  assert.deepEqual(client.nodes, ["a"]);
  client.close();
});

test("questions that a lost connection took with it are rejected", async () => {
  const WebSocket = network({ a: node((_, socket) => socket.close()) });
  const client = await connect("a", key, { WebSocket });
  await assert.rejects(client.query("lcl"), { code: "disconnected" });
  await assert.rejects(client.read("x"), { code: "disconnected" });
  client.close();
});

test("who is nowhere, speaks no sense, or refuses the key is said at once, for all of them", async () => {
  const refusing = (_, socket) => socket.say({ type: "error", code: "busy", message: "full" });
  const WebSocket = network({ refusing, silly: (_, socket) => socket.dispatchEvent(new MessageEvent("message", { data: "<html>" })), liar: node(null, { ...welcome, threshold: 67 }) });
  await assert.rejects(connect("nowhere", key, { WebSocket }), { code: "unreachable" });
  await assert.rejects(connect("refusing", key, { WebSocket }), { code: "busy", message: "full" });
  await assert.rejects(connect("liar", key, { WebSocket }), { code: "unproven" });
  await assert.rejects(connect(["nowhere", "silly", "refusing"], key, { WebSocket }), ({ code, reasons }) => code === "unreachable" && reasons.length === 3);
  await assert.rejects(connect("liar", key, { WebSocket: network({ liar: node() }), chain: "01".repeat(32) }), { code: "other_network" });
});

test("a node without room is asked again with the same bytes", async () => {
  const texts = [];
  const WebSocket = network({ a: node(({ nonce }, socket, text) => {
    texts.push(text);
    socket.say(texts.length === 1 ? { type: "status", nonce, status: "rejected", reason: "busy", message: "full" } : { type: "status", nonce, status: "accepted", seq: 9, ledger: ID });
  }) });
  const client = await connect("a", key, { WebSocket });
  assert.equal((await client.submit("x").accepted).seq, 9);
  assert.equal(texts[0], texts[1]);
  client.close();
});

test("no more inputs wait for a word than may", async () => {
  const client = await connect("a", key, { WebSocket: network({ a: node() }) });
  const inputs = Array.from({ length: 256 }, () => client.submit("x"));
  assert.throws(() => client.submit("x"), { code: "busy" });
  assert.equal(new Set(inputs.map(({ nonce }) => nonce)).size, 256);
  assert.throws(() => client.submit("x".repeat(1 << 21)), { code: "busy" });
  client.close();
  await assert.rejects(inputs[255].output, { code: "closed" });
  const fresh = await connect("a", key, { WebSocket: network({ a: node() }) });
  assert.throws(() => fresh.submit(new Uint8Array((1 << 20) + 1)), { code: "too_large" });
  fresh.close();
});

test("an output that comes in several ways, also while older ones are fetched, is told once", async () => {
  const output = await golden("output-by-results"), again = await golden("output-by-header"), asked = [], told = [];
  const page = (frame, more) => ({ ...frame, type: "answer", more: false, kept_from: 1, missing: [], failed: [], outputs: [], ...more });
  const WebSocket = network({ a: node((frame, socket) => {
    if (frame.type === "input") return socket.say({ type: "marker" });
    asked.push(frame.since);
    if (asked.length === 1) {
      socket.say(output);
      return socket.say(page(frame, { to: 3 }));
    }
    if (asked.length > 2) return socket.say(page(frame, { to: 4 }));
    socket.say(page(frame, { to: 4, outputs: [again] }));
    socket.say(output);
  }) });
  const client = await connect("a", key, { WebSocket, since: 3 });
  client.addEventListener("output", ({ detail }) => told.push([detail.seq, detail.text]));
  await heard(client, "output");
  const marker = heard(client, "frame");
  client.submit("x");
  await marker;
  assert.deepEqual(told, [[4, "an output"]]);
  assert.deepEqual(asked.slice(0, 2), [3, 3]);
  client.close();
});

test("members who changed are believed when those before them signed it, and frames wait for that", async () => {
  const step = await golden("unl"), output = await golden("output-by-results"), unl = [...welcome.unl, step.node].sort();
  const shows = (changes) => node(({ what, since }, socket) => {
    if (what !== "unl") return;
    assert.equal(since, 0);
    socket.say(output);
    socket.say({ type: "answer", what: "unl", since, changes, more: false });
  }, { ...welcome, seq: 3, unl });
  const WebSocket = network({ a: shows([step]), silent: shows([]), liar: shows([{ ...step, sigs: step.sigs.slice(1) }]) });
  const told = [], connecting = connect("a", key, { WebSocket });
  const client = await connecting;
  client.addEventListener("output", ({ detail }) => told.push(detail.text));
  await heard(client, "output");
  assert.deepEqual([client.network.unl, told], [unl, ["an output"]]);
  client.close();
  await assert.rejects(connect("silent", key, { WebSocket }), { code: "other_network" });
  await assert.rejects(connect("liar", key, { WebSocket }), { code: "unproven" });

  let socket;
  const live = await connect("b", key, { WebSocket: network({ b: node((_, from) => (socket = from)) }) });
  live.query("lcl").catch(() => {});
  const heardOf = heard(live, "members");
  socket.say(step);
  assert.deepEqual(await heardOf, { seq: 7, change: "add", node: step.node, members: unl });
  live.close();
});
