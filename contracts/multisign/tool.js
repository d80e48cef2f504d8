#!/usr/bin/env node
// For the operator of a node that runs multisign.js.
//
//   tool.js key NODEDIR         makes NODEDIR/private/multisign.key, if there is none, and prints its public key
//   tool.js carry NODEDIR URL   brings each set that this node's contract has collected to the network, as a user of the
//                               user port URL, with `hp client`; runs until it is stopped
"use strict";
const { execFile } = require("child_process");
const crypto = require("crypto");
const fs = require("fs");
const path = require("path");

const LOOK_MS = 500;

function key(dir) {
  const file = path.join(dir, "private/multisign.key");
  fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  if (!fs.existsSync(file)) fs.writeFileSync(file, crypto.randomBytes(32).toString("hex") + "\n", { mode: 0o600, flag: "wx" });
  const seed = Buffer.from(fs.readFileSync(file, "utf8").trim(), "hex");
  const der = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), seed]);
  const secret = crypto.createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  const spki = crypto.createPublicKey(secret).export({ format: "der", type: "spki" });
  console.log(spki.subarray(-32).toString("hex"));
}

function carry(dir, url) {
  const log = path.join(dir, "log/contract/stdout.log");
  const brought = new Set();
  let at = 0;
  let rest = "";
  function look() {
    const size = fs.existsSync(log) ? fs.statSync(log).size : 0;
    if (size < at) [at, rest] = [0, ""]; // the log was begun anew
    if (size > at) {
      const bytes = Buffer.alloc(size - at);
      const file = fs.openSync(log, "r");
      at += fs.readSync(file, bytes, 0, bytes.length, at);
      fs.closeSync(file);
      const lines = (rest + bytes.toString()).split("\n");
      rest = lines.pop();
      for (const line of lines.filter((line) => line.startsWith("set "))) bring(line);
    }
    setTimeout(look, LOOK_MS);
  }
  function bring(line) {
    const { id } = JSON.parse(line.slice(4));
    if (brought.has(id)) return;
    brought.add(id);
    execFile("hp", ["client", url, "--once", line], (error, out) => {
      console.log(error ? `set ${id} was not taken: ${error.message.trim()}` : out.trim());
      if (error) brought.delete(id); // the next time that it is in the log
    });
  }
  look();
}

const [command, dir, url] = process.argv.slice(2);
if (command === "key" && dir) key(dir);
else if (command === "carry" && dir && url) carry(dir, url);
else {
  console.error("usage: tool.js key NODEDIR | tool.js carry NODEDIR URL");
  process.exit(2);
}
