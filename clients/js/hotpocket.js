// A user's side of Hot Pocket: a connection in signed mode that survives its nodes, inputs that take effect once, and
// outputs that a quorum proves. For Node.js 20 and browsers; no dependency. The frames: docs/protocol.md, "Users".

import { HotPocketError, base64, checkLedger, checkOutput, checkRun, checkSettled, fail, followUnl, hex, isHex, knownTo, knowsUnl, number, readWelcome, tagged, unbase64, unhex, utf8, vec, wrong } from "./proof.js";
export { HotPocketError, checkLedger, checkOutput, checkRun, checkSettled, followUnl, generateKey, importKey, knownTo, knowsUnl, makeNetwork, readHeader, readWelcome } from "./proof.js";

const PENDING_MAX = 256; // inputs without a word of what became of them; at it submit() refuses
const FRAMES_MAX = 4096; // frames of a node that wait for their check; past it the node is left
const OPEN_MS = 10_000, AGAIN_MS = 1_000, WAIT_MS = 100, WAIT_MS_MAX = 10_000;

const promised = () => {
  let settle;
  const promise = new Promise((resolve, reject) => (settle = { resolve, reject }));
  promise.catch(() => {}); // who does not ask for it has no rejection to handle
  return { promise, ...settle };
};
const strict = new TextDecoder("utf-8", { fatal: true });
function textOf(bytes) {
  try { return strict.decode(bytes); } catch { return null; }
}

/** Connects to the first of `nodes` (`ws://`, `wss://`) that answers, and goes on at another one whenever it is lost.
 *  Options: `chain`, `unl` (what is known of the network), `since` (outputs of the ledgers after this one), `WebSocket`. */
export async function connect(nodes, key, options = {}) {
  const WebSocket = options.WebSocket ?? globalThis.WebSocket ?? (await import("ws").catch(() => fail("no_websocket", "no WebSocket here: take Node.js 22 or `node --experimental-websocket`, install `ws`, or give one as an option"))).WebSocket;
  const client = new Client([].concat(nodes), key, { ...options, WebSocket });
  const reasons = [];
  for (const url of client.nodes) {
    try { return await client.open(url), client; } catch (error) { reasons.push(error); }
  }
  throw reasons.length === 1 ? reasons[0] : new HotPocketError("unreachable", `no node took the connection: ${reasons.map((error) => error.message).join("; ")}`, { reasons });
}

/** A conversation. Events, each with its `detail`: `output`, `executed`, `settled`, `members`, `notice`, `status`, `state`, `frame`. */
export class Client extends EventTarget {
  #pending = new Map(); #waiting = new Map(); #questions = new Map(); #catching = false; #missed = false;
  #work = Promise.resolve(); #signing = Promise.resolve(); #frames = 0; #id = 0; #socket; #opened; #timers = new Set();
  #early = null; #closed = false; #wait = WAIT_MS; #nonce = Date.now() * 1000 + Math.floor(Math.random() * 1000);

  constructor(nodes, key, options) {
    super();
    Object.assign(this, { nodes, key, options, network: null, welcome: null, url: null, seq: 0, covered: options.since ?? null });
  }

  /** Signs an input and sends it, to as many nodes as it takes, until one says what became of it. `accepted` fulfils with
   *  `{nonce, seq, ledger}`; `output` with what the contract wrote to this user in that ledger, its proof checked, or
   *  null for nothing. Both reject with the reason in `code`: `contract_failed` when the run of the ledger failed. */
  submit(payload) {
    if (this.#pending.size >= PENDING_MAX) fail("busy", `${PENDING_MAX} inputs wait for a word of what became of them`);
    const bytes = typeof payload === "string" ? utf8.encode(payload) : Uint8Array.from(payload), nonce = ++this.#nonce;
    if (bytes.length > this.welcome.limits.payload_bytes) fail("too_large", `${bytes.length} bytes; at most ${this.welcome.limits.payload_bytes} are taken`);
    const input = { nonce, accepted: promised(), output: promised() };
    this.#pending.set(nonce, input);
    this.#signing = this.#signing.then(async () => {
      const max_ledger = this.seq + Math.max(1, Math.floor(this.welcome.limits.input_window / 2));
      const id = await tagged("hp/input/1", unhex(this.network.chain), unhex(this.key.publicKey), new Uint8Array(32), number(nonce, 8), number(max_ledger, 8), vec(bytes));
      input.id = hex(id);
      input.text = JSON.stringify({ type: "input", nonce, max_ledger, payload: base64(bytes), sig: hex(await this.key.sign(id)) });
      this.#ask(input.text);
    }).catch((error) => this.#refuse(input, error));
    return { nonce, accepted: input.accepted.promise, output: input.output.promise };
  }

  /** Asks the node: `query("lcl")`, `query("ledger", {seq})`, `query("input", {nonce})`, `query("outputs", {since})`. Unchecked. */
  query(what, more) { return this.#question({ type: "query", what, ...more }); }

  /** Asks the contract, on this node alone: nothing proves the answer. */
  async read(payload) {
    const { seq, ledger, payload: answer } = await this.#question({ type: "read", payload: base64(typeof payload === "string" ? utf8.encode(payload) : payload) });
    return { seq, ledger, payload: unbase64(answer), text: textOf(unbase64(answer)) };
  }

  /** A closed ledger, its certificate checked; null when there is none yet. */
  async ledger(seq) {
    const { ledger } = await this.query("ledger", { seq });
    if (!ledger) return null;
    const header = await checkLedger(this.network, ledger);
    return header.seq === seq ? { ...header, hash: ledger.hash, attempt: ledger.attempt, sigs: ledger.sigs } : wrong("it is another ledger");
  }

  /** A page of this user's outputs of the ledgers after `since`, checked, up to `to`; with `more` there is a next one. */
  async outputsSince(since) {
    const { outputs, failed, missing, kept_from, to, more } = await this.query("outputs", { since });
    const checked = [];
    for (const output of outputs) checked.push(await this.#check(output));
    for (const run of failed) run.proven = await checkRun(this.network, run.seq, run.ledger, run);
    return { outputs: checked, failed, missing, kept_from, to, more: more && to > since };
  }

  /** Ends it. What was not answered is rejected. */
  close() {
    this.#closed = true;
    this.#timers.forEach(clearTimeout);
    const error = new HotPocketError("closed", "the client was closed");
    for (const input of this.#pending.values()) this.#refuse(input, error);
    for (const waiting of this.#waiting.values()) waiting.forEach((input) => input.output.reject(error));
    this.#socket?.close();
    this.#tell("state", { state: "closed" });
  }

  /** One attempt at one node; what was not answered is sent again to it. connect() does this. */
  open(url) {
    this.#early = null;
    const opened = (this.#opened = promised()), began = Date.now();
    this.#tell("state", { state: "connecting", url });
    let socket;
    try { socket = this.#socket = new this.options.WebSocket(url); } catch (error) { return Promise.reject(new HotPocketError("unreachable", `${url}: ${error.message}`)); }
    const leave = (error) => { opened.reject(error); socket.close(); left(); };
    const timer = this.#after(OPEN_MS, () => leave(new HotPocketError("unreachable", `${url}: no welcome in time`)));
    const left = () => {
      clearTimeout(timer);
      opened.reject(new HotPocketError("unreachable", `${url}: no connection`));
      if (this.#socket !== socket || this.url !== url) return;
      [this.url, this.#socket] = [null, null];
      for (const asked of this.#questions.values()) asked.reject(new HotPocketError("disconnected", "the connection was lost before the answer came"));
      this.#questions.clear();
      if (Date.now() - began > WAIT_MS_MAX) this.#wait = WAIT_MS;
      if (!this.#closed) this.#next(url);
    };
    socket.addEventListener("close", left);
    socket.addEventListener("error", left);
    socket.addEventListener("message", ({ data }) => {
      if (++this.#frames > FRAMES_MAX) leave(new HotPocketError("flood", `${url} sends more than can be checked`));
      this.#work = this.#work.then(async () => {
        this.#frames -= 1;
        if (this.#socket !== socket) return;
        try { await this.#frame(JSON.parse(data), url, timer); } catch (error) {
          this.#tell("notice", { code: error.code ?? "bad_format", message: `${url}: ${error.message}` });
          if (error.code === "unproven" || error.code === "other_network") this.nodes = this.nodes.filter((node) => node !== url);
          leave(error);
        }
      });
    });
    return opened.promise;
  }

  // The connection is lost: another node, or the same one later, but none that lied.
  #next(last) {
    if (!this.nodes.length) return this.close();
    const url = this.nodes[(this.nodes.indexOf(last) + 1) % this.nodes.length];
    this.#tell("state", { state: "lost", url: last });
    this.#after(this.#wait, () => this.open(url).catch(() => this.#closed || this.#next(url)));
    this.#wait = Math.min(this.#wait * 2, WAIT_MS_MAX);
  }

  #after(ms, act) {
    const timer = setTimeout(() => { this.#timers.delete(timer); act(); }, ms);
    this.#timers.add(timer);
    return timer;
  }
  #tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }
  #ask(text) { if (this.url) this.#socket.send(text); }
  #question(frame) {
    if (!this.url) return Promise.reject(new HotPocketError("disconnected", "there is no connection now"));
    const id = ++this.#id, asked = promised();
    this.#questions.set(id, asked);
    this.#ask(JSON.stringify({ ...frame, id }));
    return asked.promise;
  }
  #refuse(input, error) {
    this.#pending.delete(input.nonce);
    input.accepted.reject(error);
    input.output.reject(error);
  }

  async #frame(frame, url, timer) {
    if (this.#early) { // who the members are is to be proven before anything else
      if (frame.type !== "answer" || frame.what !== "unl") {
        if (this.#early.frames.push(frame) > FRAMES_MAX) fail("flood", `${url} does not say who its members are`);
        return;
      }
      return this.#follow(frame, url, timer);
    }
    switch (frame.type) {
      case "public_challenge": {
        if (!isHex(frame.challenge, 16)) fail("bad_format", "a challenge is 32 hexadecimal digits");
        const sig = hex(await this.key.sign(utf8.encode(frame.challenge)));
        return this.#socket.send(JSON.stringify({ type: "helo", challenge: frame.challenge, pubkey: this.key.publicKey, sig, mode: "signed" }));
      }
      case "welcome": return this.#welcomed(frame, url, timer);
      case "status": this.#tell("status", frame); return this.#status(frame);
      case "output": return this.#output(frame);
      case "executed": return this.#executed(frame);
      case "answer": case "read_result": {
        const asked = this.#questions.get(frame.id);
        this.#questions.delete(frame.id);
        if (frame.type === "answer" || frame.status === "ok") return asked?.resolve(frame);
        return asked?.reject(new HotPocketError(frame.reason ?? "contract_failed", frame.message ?? frame.run));
      }
      case "error": return this.url ? this.#tell("notice", frame) : fail(frame.code, frame.message);
      case "unl":
        if (await followUnl(this.network, frame)) this.#tell("members", { seq: frame.seq, change: frame.change, node: frame.node, members: this.network.unl });
        return;
      case "settled":
        await checkSettled(this.network, frame);
        return this.#tell("settled", frame);
      default: return this.#tell("frame", frame);
    }
  }

  async #welcomed(welcome, url, timer) {
    const named = await readWelcome(welcome, this.options), network = this.network ?? named;
    if (named.chain !== network.chain) fail("other_network", "the node is of another chain than the first one was");
    if (network.unl.join() === welcome.unl.join()) return this.#begin(network, welcome, url, timer);
    this.#early = { network, welcome, frames: [] };
    this.#socket.send(JSON.stringify({ type: "query", what: "unl", since: knownTo(network) }));
  }
  // The node shows how the members of before became those of now, some changes at a time.
  async #follow({ since, changes, more }, url, timer) {
    const { network, welcome, frames } = this.#early;
    for (const step of changes) await followUnl(network, step);
    const to = changes.at(-1)?.seq;
    if (more && to > since) return this.#socket.send(JSON.stringify({ type: "query", what: "unl", since: to }));
    if (!knowsUnl(network, welcome.unl)) fail("other_network", `the node does not prove how its members, ${welcome.unl.join(" ")}, followed those that are known`);
    this.#early = null;
    await this.#begin(network, welcome, url, timer);
    for (const frame of frames) await this.#frame(frame, url, timer);
  }
  async #begin(network, welcome, url, timer) {
    clearTimeout(timer);
    Object.assign(this, { network, welcome, url, seq: Math.max(this.seq, welcome.seq) });
    for (const input of this.#pending.values()) if (input.text) this.#ask(input.text);
    if (this.covered === null) this.covered = welcome.seq;
    else this.#catchUp().catch((error) => this.#tell("notice", error));
    this.#opened.resolve();
    this.#tell("state", { state: "open", url });
  }

  // Tells of the outputs since the last one, in order; those that come meanwhile are fetched as well.
  async #catchUp() {
    this.#catching = true;
    try {
      for (let more = true; more; ) {
        this.#missed = false;
        const page = await this.outputsSince(this.covered);
        for (const output of page.outputs) this.#told(output);
        for (const run of page.failed) this.#ran(run, run.proven);
        if (page.missing.length) this.#tell("notice", { code: "missing", message: `the node lacks the outputs of ledgers ${page.missing.join(", ")}` });
        this.#cover(page.to);
        more = page.more || this.#missed;
      }
    } finally { this.#catching = false; }
  }

  async #check(output) {
    const payload = await checkOutput(this.network, this.key.publicKey, output);
    return { ...output, payload, text: textOf(payload), signers: output.proof.sigs.length, members: this.network.unl.length };
  }
  async #output(frame) {
    const output = await this.#check(frame);
    if (this.#catching) this.#missed = true;
    else this.#told(output);
  }
  #told(output) {
    if (output.seq <= this.covered) return;
    this.#tell("output", output);
    for (const input of this.#waiting.get(output.seq) ?? []) input.output.resolve(output);
    this.#cover(output.seq);
  }
  #ran(run, proven) {
    if (run.ok) return;
    for (const input of this.#waiting.get(run.seq) ?? []) input.output.reject(new HotPocketError("contract_failed", `the contract failed in ledger ${run.seq} (${run.status})`, { proven }));
  }
  async #executed(run) {
    const proven = await checkRun(this.network, run.seq, run.ledger, run);
    this.#tell("executed", { ...run, proven });
    this.#ran(run, proven);
    if (this.#catching) this.#missed = true;
    else this.#cover(run.seq);
  }
  // Everything up to this ledger was told: who still waits has no output.
  #cover(seq) {
    this.seq = Math.max(this.seq, seq);
    this.covered = Math.max(this.covered, seq);
    for (const [at, inputs] of this.#waiting) if (at <= this.covered && this.#waiting.delete(at)) inputs.forEach((input) => input.output.resolve(null));
  }

  async #status(frame) {
    const input = this.#pending.get(frame.nonce);
    if (!input || (frame.id && frame.id !== input.id)) return; // of another session with this key
    if (frame.status === "rejected" && (frame.reason === "busy" || frame.reason === "rate")) return void this.#after(AGAIN_MS, () => this.#pending.has(input.nonce) && this.#ask(input.text));
    if (frame.status === "rejected") return this.#refuse(input, new HotPocketError(frame.reason, frame.message));
    const { nonce, seq, ledger, run } = frame;
    this.#pending.delete(nonce);
    this.seq = Math.max(this.seq, seq);
    if (run) await checkRun(this.network, seq, ledger, run);
    if (run || seq <= this.covered) this.#past(input, seq);
    else this.#waiting.set(seq, [...(this.#waiting.get(seq) ?? []), input]);
    input.accepted.resolve({ nonce, seq, ledger });
  }
  // It was in a ledger before this node was asked: what came of it is among the outputs of the past.
  #past(input, seq) {
    this.outputsSince(seq - 1).then(({ outputs, failed }) => {
      const run = failed.find((run) => run.seq === seq);
      if (run) return input.output.reject(new HotPocketError("contract_failed", `the contract failed in ledger ${seq} (${run.status})`, { proven: run.proven }));
      input.output.resolve(outputs.find((output) => output.seq === seq) ?? null);
    }).catch(input.output.reject);
  }
}
