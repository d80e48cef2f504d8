// What a user signs and checks, without a connection: bytes, hashes, keys, certificates, proofs. Nothing beyond WebCrypto.
// What each byte means: docs/protocol.md.

const SIBLINGS_MAX = 32, UNL_MAX = 128, UNLS_MAX = 1024;

/** What went wrong: `code` for programs (a reason of the protocol, or one of this file), the message for people. */
export class HotPocketError extends Error {
  constructor(code, message, more) {
    super(message);
    Object.assign(this, { name: "HotPocketError", code }, more);
  }
}
export const fail = (code, message, more) => { throw new HotPocketError(code, message, more); };
export const wrong = (message) => fail("unproven", message);

// ---- Bytes ----------------------------------------------------------------------------------------------------------

export const utf8 = new TextEncoder();
const subtle = () => globalThis.crypto?.subtle ?? fail("no_crypto", "no WebCrypto here: browsers have it on https and localhost");
export const isHex = (text, bytes) => typeof text === "string" && text.length === 2 * bytes && /^[0-9a-f]*$/.test(text);
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
export const unhex = (text, bytes = text?.length / 2) =>
  isHex(text, bytes) ? Uint8Array.from({ length: bytes }, (_, at) => parseInt(text.slice(2 * at, 2 * at + 2), 16)) : fail("bad_format", `not ${bytes} bytes in lower-case hexadecimal`);
export const unbase64 = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
export function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}
export const join = (...parts) => {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
  return all;
};
export const number = (value, bytes) => Uint8Array.from({ length: bytes }, (_, at) => Number((BigInt(value) >> BigInt(8 * at)) & 255n));
export const vec = (bytes) => join(number(bytes.length, 4), bytes);

/** The protocol's tagged hash: the first 32 bytes of SHA-512(length of tag, tag, parts). */
export async function tagged(tag, ...parts) {
  const bytes = join([tag.length], utf8.encode(tag), ...parts);
  return new Uint8Array(await subtle().digest("SHA-512", bytes)).subarray(0, 32);
}

// Reads borsh; whoever uses it reads all, in the one form there is.
class Reader {
  constructor(bytes) { Object.assign(this, { bytes, view: new DataView(bytes.buffer, bytes.byteOffset), at: 0 }); }
  take(count) {
    if (this.at + count > this.bytes.length) wrong("bytes are missing");
    return this.bytes.subarray(this.at, (this.at += count));
  }
  number(count) { return this.take(count).reduceRight((sum, byte) => sum * 256 + byte, 0); }
  i32() { return this.number(4) | 0; }
  hash() { return hex(this.take(32)); }
  variant(count) { const at = this.number(1); return at < count ? at : wrong("no such variant"); }
  option(read) { return this.variant(2) ? read() : null; }
  end(value) { return this.at === this.bytes.length ? value : wrong("bytes are left over"); }
}

const LIMITS = ["time limit", "output limit", "party line limit", "file size limit", "forbidden kind of file in state/", "state size limit"];
function readResult(from) {
  const result = { of_seq: from.number(8), of_hash: from.hash(), state_root: from.hash(), outputs_root: from.hash() };
  const kind = from.variant(4);
  result.status = kind === 0 ? "ok" : kind === 1 ? `exit code ${from.i32()}` : kind === 2 ? `signal ${from.i32()}` : LIMITS[from.variant(LIMITS.length)];
  result.unl_req = from.option(() => ({ change: ["add", "remove"][from.variant(2)], node: from.hash() }));
  return result;
}

/** The fields of a header in borsh; `result` is that of the ledger before it. */
export function readHeader(bytes) {
  const from = new Reader(bytes);
  return from.end({
    ver: from.number(2), chain_id: from.hash(), seq: from.number(8), parent: from.hash(), time_ms: from.number(8),
    unl_hash: from.hash(), next_unl_hash: from.hash(), users_root: from.hash(), n_users: from.number(4),
    inputs_root: from.hash(), n_inputs: from.number(4), inputs_bytes: from.number(8), result: readResult(from),
    settlement: from.option(() => ({ seq: from.number(8), ch: from.hash(), tx: from.hash(), confirmed_length: from.number(8), txv: from.hash() })),
  });
}

// ---- Keys -----------------------------------------------------------------------------------------------------------

const PKCS8 = unhex("302e020100300506032b657004220420");

/** A new key: `{publicKey, sign(bytes), secret()}`; `secret()` is the 64 digits that importKey() and `hp client --key` read. */
export const generateKey = () => importKey(hex(globalThis.crypto.getRandomValues(new Uint8Array(32))));

/** The key of a secret in hexadecimal: 64 digits, or 128 whose second half is the public key. */
export async function importKey(text) {
  const secret = text.trim().toLowerCase();
  if (!isHex(secret, 32) && !isHex(secret, 64)) fail("bad_key", "a secret key is 64 hexadecimal digits (seed) or 128 (seed, then public key)");
  const pkcs8 = join(PKCS8, unhex(secret.slice(0, 64)));
  const key = await subtle().importKey("pkcs8", pkcs8, "Ed25519", true, ["sign"]);
  const { x } = await subtle().exportKey("jwk", key);
  const publicKey = hex(unbase64(x.replaceAll("-", "+").replaceAll("_", "/")));
  if (secret.length === 128 && secret.slice(64) !== publicKey) fail("bad_key", `the second half of the secret key is not the public key of its first half (${publicKey})`);
  return { publicKey, secret: () => secret.slice(0, 64), sign: async (bytes) => new Uint8Array(await subtle().sign("Ed25519", key, bytes)) };
}

// ---- What is proven -------------------------------------------------------------------------------------------------

/** What everything is checked with: chain, UNL (ascending) and threshold; in `unls` also the UNLs of before, each with the first
 *  ledger that it closes. */
export async function makeNetwork(chain, unl, threshold) {
  const first = await members(chain, unl, threshold, 0);
  return { chain, threshold, unls: [first], get unl() { return this.unls.at(-1).unl; }, get quorum() { return this.unls.at(-1).quorum; } };
}
async function members(chain, unl, threshold, since) {
  if (!unl.length || unl.length > UNL_MAX || !unl.every((key, at) => isHex(key, 32) && (!at || unl[at - 1] < key))) wrong(`a UNL has 1 to ${UNL_MAX} members, ascending and each once`);
  if (!Number.isInteger(threshold) || threshold < 67 || threshold > 100) wrong(`a threshold is 67 to 100 percent, not ${threshold}`);
  const unlHash = hex(await tagged("hp/unl/1", number(unl.length, 4), ...unl.map((key) => unhex(key))));
  return { since, unl, unlHash, quorum: Math.ceil((unl.length * threshold) / 100), scope: join(unhex(chain, 32), unhex(unlHash)) };
}
const membersOf = (network, seq) => network.unls.findLast(({ since }) => since <= seq) ?? network.unls[0];

/** The ledger behind which changes of the members are not known. */
export const knownTo = (network) => Math.max(network.unls.at(-1).since - 1, 0);

/** Follows a change of the members, a frame of the node: those before it must have signed it. False when it is known, or of others. */
export async function followUnl(network, step) {
  const header = readHeader(unbase64(step.header)), last = network.unls.at(-1);
  if (header.unl_hash !== last.unlHash || header.seq < last.since) return false;
  await checkLedger(network, step);
  if (header.seq !== step.seq) wrong("the change is of another ledger");
  const others = last.unl.filter((key) => key !== step.node);
  const next = await members(network.chain, step.change === "add" ? [...others, step.node].sort() : others, network.threshold, header.seq + 1);
  if (next.unlHash !== header.next_unl_hash || next.unlHash === last.unlHash) wrong("the ledger makes another change of the members");
  network.unls.push(next);
  if (network.unls.length > UNLS_MAX) network.unls.shift();
  return true;
}

/** Whether these are the members, or were; how they came to be it is followed by followUnl(). */
export const knowsUnl = (network, unl) => network.unls.some((one) => one.unl.join() === unl.join());

/** The network that a welcome names, with the members that the chain began with: those of its genesis, whose hash is the chain's name.
 *  Of the pins, `{chain, unl}`, the chain must be this one; the UNL is believed instead of the first one. */
export async function readWelcome(welcome, pins = {}) {
  const bytes = unbase64(welcome.genesis), from = new Reader(bytes);
  const chain = hex(await tagged("hp/genesis/1", bytes));
  const genesis = { ver: from.number(2), contract: from.hash(), unl: Array.from({ length: Math.min(from.number(4), UNL_MAX) }, () => from.hash()), threshold: from.number(1) };
  if (chain !== welcome.chain || genesis.contract !== welcome.contract || genesis.threshold !== welcome.threshold) wrong("what the node says of its chain does not fit the chain's genesis");
  if (pins.chain && pins.chain !== chain) fail("other_network", `the node is of chain ${chain}, not of ${pins.chain}`);
  return makeNetwork(chain, pins.unl ? [...pins.unl].sort() : genesis.unl, welcome.threshold);
}

async function signedByQuorum({ unl, quorum, scope }, tag, body, sigs) {
  const digest = await tagged(tag, scope, body);
  if (!Array.isArray(sigs) || sigs.length > UNL_MAX || !sigs.every(([key], at) => unl.includes(key) && (!at || sigs[at - 1][0] < key))) wrong("the signers are not members of the UNL, each once and ascending");
  const checks = sigs.map(async ([key, sig]) => {
    const member = await subtle().importKey("raw", unhex(key), "Ed25519", false, ["verify"]);
    if (!(await subtle().verify("Ed25519", member, unhex(sig, 64), digest))) wrong(`the signature of ${key} is wrong`);
  });
  await Promise.all(checks);
  if (sigs.length < quorum) wrong(`${sigs.length} of the UNL's ${unl.length} members signed, a quorum is ${quorum}`);
}

/** Checks a closed ledger, `{hash, header, attempt, sigs}` with the header in base64 borsh, and returns the header's fields. */
export async function checkLedger(network, ledger) {
  const bytes = unbase64(ledger.header), header = readHeader(bytes), hash = await tagged("hp/ledger/1", bytes);
  if (ledger.hash !== undefined && ledger.hash !== hex(hash)) wrong("the header is not that of this hash");
  if (header.chain_id !== network.chain) wrong("the header is of another chain");
  const members = membersOf(network, header.seq);
  if (header.unl_hash !== members.unlHash) wrong("the ledger was closed by another UNL");
  await signedByQuorum(members, "hp/precommit/1", join(number(header.seq, 8), number(ledger.attempt, 4), hash), ledger.sigs);
  return header;
}

async function agreedResult(network, seq, ledger, proof) {
  let result;
  if (proof.by === "results") {
    const bytes = unbase64(proof.result), from = new Reader(bytes);
    result = from.end(readResult(from));
    await signedByQuorum(membersOf(network, result.of_seq + 1), "hp/result/1", bytes, proof.sigs); // those who close the next one
  } else if (proof.by === "header") {
    const header = await checkLedger(network, proof);
    if (header.seq !== seq + 1 || header.parent !== ledger) wrong("the proof is about another ledger");
    result = header.result;
  } else wrong("a proof of no known kind");
  return result.of_seq === seq && result.of_hash === ledger ? result : wrong("the proof is about another ledger");
}

/** Checks that a quorum agreed on this output, a frame of the node, for `user`; returns the payload's bytes. */
export async function checkOutput(network, user, output) {
  const result = await agreedResult(network, output.seq, output.ledger, output.proof);
  if (result.status !== "ok") wrong(`the run of ledger ${output.seq} has no outputs: ${result.status}`);
  const payload = unbase64(output.payload), { index, siblings } = output.proof.path;
  if (siblings.length > SIBLINGS_MAX) wrong("the path is too long");
  let position = index, node = await tagged("hp/output/1", unhex(user, 32), await tagged("hp/output-bytes/1", vec(payload)));
  for (const sibling of siblings) {
    if (sibling !== null) node = await tagged("hp/node/1", ...(position % 2 ? [unhex(sibling, 32), node] : [node, unhex(sibling, 32)]));
    position = Math.floor(position / 2);
  }
  return hex(node) === result.outputs_root ? payload : wrong("the output is not among the agreed ones");
}

/** Checks how a run ended, `{ok, status, proof?}`; false when the node does not prove it. */
export async function checkRun(network, seq, ledger, run) {
  if (!run.proof) return false;
  const { status } = await agreedResult(network, seq, ledger, run.proof);
  return (run.status === status && run.ok === (status === "ok")) || wrong("the proof is about another end of the run");
}

/** Checks that the chain records a settlement, `{last, tx, ch, confirmed_length, recorded_in, proof}`. */
export async function checkSettled(network, settled) {
  const header = await checkLedger(network, settled.proof);
  const { seq, tx, ch, confirmed_length } = header.settlement ?? wrong("the ledger records no settlement");
  const holds = header.seq === settled.recorded_in && seq === settled.last && tx === settled.tx && ch === settled.ch && confirmed_length === settled.confirmed_length;
  return holds || wrong("the ledger records another settlement");
}
