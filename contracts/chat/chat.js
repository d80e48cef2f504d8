#!/usr/bin/env node
// Chat: each line a user sends goes to all users as `<8 digits of the key>: text`; who comes in gets the last lines.
//
// Interface: contracts/README.md. A client ends each input with a line feed, as those of one ledger arrive joined.
// state/history holds the last lines, state/present the users of the ledger before.
"use strict";
const crypto = require("crypto");
const fs = require("fs");

const HISTORY = "state/history";
const PRESENT = "state/present";

const HISTORY_LINES = 100; // older ones are forgotten
const LINE_CHARACTERS = 500; // a longer line is cut
const USER_LINES_MAX = 20; // of one user in one ledger; the others are not sent, and the user is told
// What is said goes to everybody, so the bytes for each user shrink as the room grows: all output together stays far
// below the limits of a run. Half is for what is new, half for the history that newcomers get.
const OUTPUT_BYTES_MAX = 32 << 20;
const USER_OUTPUT_BYTES_MAX = 1 << 20;

const ledger = JSON.parse(fs.readFileSync(0, "utf8"));
// The history must be alike on every node, so there is an order in which users speak: by the agreed randomness, so that
// when there is no room for all it is not always the same ones who are cut off.
const turn = (user) => crypto.createHash("sha256").update((ledger.seed ?? ledger.lcl) + user).digest("hex");
const users = Object.keys(ledger.user).sort();
const speakers = users.map((user) => [turn(user), user]).sort().map(([, user]) => user);
const half = Math.floor(Math.min(USER_OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX / Math.max(1, users.length)) / 2);

function readLines(path) {
  return fs.existsSync(path) ? fs.readFileSync(path, "utf8").split("\n").slice(0, -1) : [];
}

function writeLines(path, lines) {
  fs.writeFileSync(path, lines.map((line) => line + "\n").join(""));
}

function writeAll(fd, text) {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; ) at += fs.writeSync(fd, bytes, at);
}

// Could play tricks on the terminals of others: control characters, and what makes text run from right to left.
const TRICKS = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g;

// Lines of printable text. Bytes that are no UTF-8 become U+FFFD.
function linesOf(input) {
  const lines = input.toString("utf8").split("\n").map((line) => {
    // First roughly, so that one line of many megabytes is not taken apart.
    const text = line.slice(0, 4 * LINE_CHARACTERS).replace(TRICKS, "");
    return Array.from(text).slice(0, LINE_CHARACTERS).join("");
  });
  return lines.filter((line) => line.trim() !== "");
}

// The last lines that fit into so many bytes.
function lastThatFit(lines, bytes) {
  let from = lines.length;
  while (from > 0 && (bytes -= Buffer.byteLength(lines[from - 1]) + 1) >= 0) from--;
  return lines.slice(from);
}

const before = readLines(HISTORY);
const present = readLines(PRESENT);
const said = [];
const unsent = new Map();
let room = half;
for (const user of speakers) {
  let lines = 0;
  for (const text of linesOf(fs.readFileSync(ledger.user[user][0]))) {
    const line = `${user.slice(0, 8)}: ${text}`;
    const bytes = Buffer.byteLength(line) + 1;
    if (lines < USER_LINES_MAX && bytes <= room) {
      said.push(line);
      room -= bytes;
      lines++;
    } else {
      unsent.set(user, (unsent.get(user) ?? 0) + 1);
    }
  }
}

const known = new Set(present);
const welcome = lastThatFit(before, half);
for (const user of users) {
  const lines = known.has(user) ? [...said] : [...welcome, ...said];
  if (unsent.has(user)) lines.push(`* ${unsent.get(user)} of your lines were too much at once and not sent`);
  writeAll(ledger.user[user][1], lines.map((line) => line + "\n").join(""));
}

// Only what changed is written: a quiet ledger leaves the state as it is.
if (said.length > 0) writeLines(HISTORY, [...before, ...said].slice(-HISTORY_LINES));
if (users.join() !== present.join()) writeLines(PRESENT, users);
