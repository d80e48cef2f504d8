#!/usr/bin/env node
// Multisign: the nodes sign a text with keys of their own, and every node gives out one and the same set of signatures.
//
// Interface: contracts/README.md, "Signing with the nodes' own keys", which says why it works this way. state/signers,
// put there by the operators before the first run and alike on all nodes, has the signers' public keys in hex, one a line,
// and may begin with `need N`: how many make a set (all, without). private/multisign.key has this node's own key; see
// tool.js. A user sends lines:
//   sign TEXT                          -> request ID, later: signed {"id":ID,...} or: nothing ID
//   get ID                             -> signed {...}, pending ID or nothing ID
//   set {"id":ID,"signatures":{...}}   -> ok ID, or why not; anybody may bring a set, for it is checked
"use strict";
const crypto = require("crypto");
const fs = require("fs");

const PENDING_MAX = 64; // requests that wait for their signatures; the next one is refused
const TEXT_CHARACTERS_MAX = 1000; // of one request; a longer one is refused
const LEDGERS_MAX = 64; // that a request waits; then the answer is nothing
const SETS_MAX = 1000; // that are kept for `get`; the oldest are forgotten
const LINES_MAX = 64; // of one user in one ledger; what is over is not read
const SIGNERS_MAX = 128;
const HEARD_BYTES_MAX = 1 << 16; // of one node; what is over is not read

const ledger = JSON.parse(fs.readFileSync(0, "utf8"));

// ---- Keys -----------------------------------------------------------------------------------------------------------

const SECRET_DER = Buffer.from("302e020100300506032b657004220420", "hex");
const PUBLIC_DER = Buffer.from("302a300506032b6570032100", "hex");

function publicKey(hex) {
  return crypto.createPublicKey({ key: Buffer.concat([PUBLIC_DER, Buffer.from(hex, "hex")]), format: "der", type: "spki" });
}

// This node's key, or null where its operator has put none.
function ownKey() {
  const file = ledger.private && `${ledger.private}/multisign.key`;
  if (!file || !fs.existsSync(file)) return null;
  const seed = Buffer.from(fs.readFileSync(file, "utf8").trim(), "hex");
  if (seed.length !== 32) throw new Error("private/multisign.key: expected 64 hexadecimal digits");
  const secret = crypto.createPrivateKey({ key: Buffer.concat([SECRET_DER, seed]), format: "der", type: "pkcs8" });
  const spki = crypto.createPublicKey(secret).export({ format: "der", type: "spki" });
  return { secret, name: spki.subarray(-32).toString("hex") };
}

// What is signed: nothing that was signed for another network or another request can be taken for it.
function message(request) {
  return Buffer.from(`hp-multisign/1\n${ledger.contract}\n${request.id}\n${request.text}`);
}

function readSigners() {
  const lines = fs.existsSync("state/signers") ? fs.readFileSync("state/signers", "utf8").split("\n") : [];
  const names = lines.filter((line) => /^[0-9a-f]{64}$/.test(line)).slice(0, SIGNERS_MAX);
  const signers = new Map([...new Set(names)].sort().map((name) => [name, publicKey(name)]));
  const need = /^need ([0-9]{1,3})$/.exec(lines[0]);
  return { signers, need: need ? Number(need[1]) : signers.size };
}

const { signers, need } = readSigners();

// The signatures that are right, at most `need`, in the order of the signers' keys: one form for one set.
function valid(request, signatures) {
  const right = {};
  for (const [name, key] of signers) {
    const signature = signatures[name];
    if (typeof signature !== "string" || !/^[0-9a-f]{128}$/.test(signature)) continue;
    if (Object.keys(right).length === need) break;
    if (crypto.verify(null, message(request), key, Buffer.from(signature, "hex"))) right[name] = signature;
  }
  return right;
}

function isComplete(signatures) {
  return need > 0 && Object.keys(signatures).length >= need;
}

// ---- What is agreed: requests and sets, in the state ----------------------------------------------------------------

const BOOK = "state/book.json";
const before = fs.existsSync(BOOK) ? fs.readFileSync(BOOK, "utf8") : "";
// pending: those that wait; done: [id, line] of those that have their set.
const book = before ? JSON.parse(before) : { next: 1, pending: [], done: [] };

const answers = new Map(); // user -> lines
function tell(user, line) {
  answers.set(user, [...(answers.get(user) ?? []), line]);
}

function parseSet(text) {
  try {
    const set = JSON.parse(text);
    const ok = Number.isSafeInteger(set.id) && typeof set.signatures === "object" && set.signatures !== null;
    return ok ? set : null;
  } catch {
    return null;
  }
}

function find(id) {
  return book.done.find(([done]) => done === id)?.[1];
}

function doLine(user, line) {
  const [, command, rest] = /^(sign|get|set) +(.*)$/.exec(line) ?? [];
  if (command === "sign") {
    if (rest.length > TEXT_CHARACTERS_MAX) return `the text has more than ${TEXT_CHARACTERS_MAX} characters`;
    if (book.pending.length >= PENDING_MAX) return "too many requests are waiting, try again later";
    const request = { id: book.next++, text: rest, until: ledger.seq + LEDGERS_MAX, user };
    book.pending.push(request);
    return `request ${request.id}`;
  }
  if (command === "get" && /^[0-9]{1,15}$/.test(rest)) {
    const pending = book.pending.some((request) => request.id === Number(rest));
    return find(Number(rest)) ?? `${pending ? "pending" : "nothing"} ${rest}`;
  }
  const set = command === "set" ? parseSet(rest) : null;
  if (set) {
    if (find(set.id)) return `ok ${set.id}`; // somebody was quicker
    const place = book.pending.findIndex((request) => request.id === set.id);
    if (place < 0) return `no request ${set.id} is waiting`;
    const request = book.pending[place];
    const signatures = valid(request, set.signatures);
    if (!isComplete(signatures)) return `the set for ${set.id} is not complete`;
    const signed = `signed ${JSON.stringify({ id: request.id, signatures, text: request.text })}`;
    book.pending.splice(place, 1);
    book.done = [...book.done, [request.id, signed]].slice(-SETS_MAX);
    if (request.user in ledger.user) tell(request.user, signed);
    return `ok ${set.id}`;
  }
  return 'expected: sign TEXT, get ID or set {"id":ID,"signatures":{...}}';
}

for (const user of Object.keys(ledger.user).sort()) {
  const lines = fs.readFileSync(ledger.user[user][0], "utf8").split("\n").map((line) => line.trim());
  for (const line of lines.filter((line) => line !== "").slice(0, LINES_MAX)) tell(user, doLine(user, line));
}
for (const request of book.pending.filter((request) => request.until <= ledger.seq)) {
  if (request.user in ledger.user) tell(request.user, `nothing ${request.id}`);
}
book.pending = book.pending.filter((request) => request.until > ledger.seq);

const after = JSON.stringify(book);
if (after !== before && (before || book.next > 1)) fs.writeFileSync(BOOK, after);
for (const [user, lines] of answers) {
  const bytes = Buffer.from(lines.map((line) => line + "\n").join(""));
  for (let at = 0; at < bytes.length; ) at += fs.writeSync(ledger.user[user][1], bytes, at);
}

// ---- What is not agreed: who was heard, on the party line -----------------------------------------------------------
// From here on nothing is written to users or to the state. A complete set goes to the log, for somebody to bring it.

function frames(bytes) {
  const heard = new Map(); // node -> all that it said
  while (bytes.length > 0) {
    const end = bytes.indexOf("\n\n");
    const header = end < 0 ? null : /^Length: ([0-9]+)\nPubkey: ([0-9a-f]{64})$/.exec(bytes.subarray(0, end).toString("latin1"));
    if (!header) break;
    const [from, to] = [end + 2, end + 2 + Number(header[1])];
    const said = Buffer.concat([heard.get(header[2]) ?? Buffer.alloc(0), bytes.subarray(from, to)]);
    heard.set(header[2], said.subarray(0, HEARD_BYTES_MAX));
    bytes = bytes.subarray(to);
  }
  return [...heard.values()];
}

if (book.pending.length > 0) {
  const own = ownKey();
  const mine = {};
  for (const request of own ? book.pending : []) {
    mine[request.id] = crypto.sign(null, message(request), own.secret).toString("hex");
  }
  const said = Buffer.from(JSON.stringify({ name: own?.name ?? "", signatures: mine }));
  for (let at = 0; at < said.length; ) at += fs.writeSync(ledger.npl[1], said, at);
  fs.closeSync(ledger.npl[1]); // before reading to the end, or everybody waits for the window
  const collected = new Map(book.pending.map((request) => [request.id, {}]));
  for (const bytes of frames(fs.readFileSync(ledger.npl[0]))) {
    try {
      const { name, signatures } = JSON.parse(bytes.toString());
      for (const request of book.pending) {
        // Only what is right: nobody can hide a signature behind a wrong one.
        Object.assign(collected.get(request.id), valid(request, { [name]: signatures[request.id] }));
      }
    } catch {
      // Another node may say what it likes.
    }
  }
  for (const request of book.pending) {
    const signatures = valid(request, collected.get(request.id));
    if (isComplete(signatures)) console.log(`set ${JSON.stringify({ id: request.id, signatures })}`);
    else console.log(`request ${request.id}: ${Object.keys(signatures).length} of ${need} signatures heard`);
  }
}
