#!/usr/bin/env node
// Sends one input to a contract and prints what it answers, when a quorum of the network has signed for it.
//
//     node --experimental-websocket example.js ws://127.0.0.1:34121[,ws://...] "some text" [CHAIN]
//
// `hp dev` prints addresses. CHAIN, the chain's id, pins the network: without it the first node's word counts. The key is
// a new one each time; a program that is to be known again keeps `key.secret()`, and gives it to importKey().

import { connect, generateKey } from "./hotpocket.js";

const [nodes, text, chain] = process.argv.slice(2);
if (text === undefined) {
  console.error("usage: node --experimental-websocket example.js ws://NODE[,ws://NODE...] TEXT [CHAIN]");
  process.exit(2);
}

try {
  const client = await connect(nodes.split(","), await generateKey(), { chain });
  client.addEventListener("notice", ({ detail }) => console.error(`note: ${detail.message}`));
  const began = performance.now();
  const { accepted, output } = client.submit(text);
  const { seq } = await accepted;
  console.error(`accepted in ledger ${seq} after ${Math.round(performance.now() - began)} ms`);
  const answer = await output;
  if (answer === null) console.error("the contract ran well and wrote nothing");
  else {
    console.error(`${answer.signers} of ${answer.members} members signed for this:`);
    process.stdout.write(answer.payload);
    if (process.stdout.isTTY && !answer.text?.endsWith("\n")) console.log();
  }
  client.close();
} catch (error) {
  console.error(`${error.code ?? "error"}: ${error.message}`);
  process.exit(1);
}
