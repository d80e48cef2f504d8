// The golden frames of tests/golden/signed, checked as they are and with one thing wrong at a time. Knows neither Node.js
// nor a browser, so that it runs in both: `read(name)` gives a golden file's object.

import { HotPocketError, checkLedger, checkOutput, checkRun, checkSettled, followUnl, generateKey, importKey, knownTo, knowsUnl, readWelcome } from "../hotpocket.js";
import { base64, hex, number, tagged, unbase64, unhex, vec } from "../proof.js";

const copy = (value) => JSON.parse(JSON.stringify(value));
function equal(found, expected, what) {
  if (JSON.stringify(found) !== JSON.stringify(expected)) throw new Error(`${what}: ${JSON.stringify(found)}, not ${JSON.stringify(expected)}`);
}
async function refused(work, part) {
  const error = await work().then(() => null, (error) => error);
  if (!(error instanceof HotPocketError)) throw new Error(`not refused (${part}): ${error}`);
  if (!error.message.includes(part)) throw new Error(`refused with "${error.message}", not "${part}"`);
}
const flip = (text, at) => {
  const bytes = unbase64(text);
  bytes[at] ^= 1;
  return base64(bytes);
};

/** Named tests, `[name, async () => ...]`. */
export function tests(read) {
  const user = async () => importKey("09".repeat(32));
  const network = async () => readWelcome(await read("welcome"));
  // Each with a part of the reason that must be given.
  const lies = (frame, header) => {
    const wrong = (part, change) => [part, (lie) => (change(lie), lie)];
    const stranger = ["11".repeat(32), "22".repeat(64)];
    return [
      wrong("signature", ({ proof }) => (proof.sigs[1][1] = proof.sigs[1][1].replace(/^./, (digit) => (digit === "0" ? "1" : "0")))),
      wrong("signature", ({ proof }) => (proof.sigs[0][1] = proof.sigs[1][1])),
      wrong("a quorum is 3", ({ proof }) => proof.sigs.pop()),
      wrong("a quorum is 3", ({ proof }) => (proof.sigs = [])),
      wrong("signers", ({ proof }) => (proof.sigs[2] = proof.sigs[1])),
      wrong("signers", ({ proof }) => proof.sigs.splice(1, 0, proof.sigs[0])),
      wrong("signers", ({ proof }) => proof.sigs.reverse()),
      wrong("signers", ({ proof }) => (proof.sigs[0] = stranger)),
      wrong("signers", ({ proof }) => proof.sigs.unshift(stranger)),
      wrong("64 bytes", ({ proof }) => (proof.sigs[0][1] = "00")),
      wrong("another ledger", (lie) => (lie.seq += 1)),
      wrong("another ledger", (lie) => (lie.ledger = "05".repeat(32))),
      ...(header
        ? [
            wrong("signature", ({ proof }) => (proof.attempt += 1)),
            wrong("signature", ({ proof }) => (proof.header = flip(proof.header, 74))),
            wrong("another chain", ({ proof }) => (proof.header = flip(proof.header, 2))),
            wrong("another UNL", ({ proof }) => (proof.header = flip(proof.header, 82))),
            wrong("missing", ({ proof }) => (proof.header = base64(unbase64(proof.header).slice(0, -1)))),
            wrong("left over", ({ proof }) => (proof.header = base64(Uint8Array.from([...unbase64(proof.header), 0])))),
          ]
        : [
            wrong("signature", ({ proof }) => (proof.result = flip(proof.result, 40))),
            wrong("no such variant", ({ proof }) => (proof.result = base64(unbase64(proof.result).fill(9, 104, 105)))),
          ]),
      ...(frame.payload === undefined ? [] : [
        wrong("not among", (lie) => (lie.payload = flip(lie.payload, 0))),
        wrong("not among", (lie) => (lie.proof.path.index ^= 1)),
        wrong("not among", (lie) => lie.proof.path.siblings.push(null, "00".repeat(32))),
        wrong("not among", (lie) => (lie.proof.path.siblings = [])),
        wrong("too long", (lie) => (lie.proof.path.siblings = Array(33).fill(null))),
      ]),
      wrong("no known kind", ({ proof }) => (proof.by = "my word")),
    ];
  };
  const outputs = ["output-by-results", "output-by-header"].map((name) => [
    `${name} is proven, and no lie about it`,
    async () => {
      const [frame, trusted, { publicKey }] = [await read(name), await network(), await user()];
      equal(new TextDecoder().decode(await checkOutput(trusted, publicKey, frame)), "an output", name);
      await refused(() => checkOutput(trusted, "22".repeat(32), frame), "not among");
      for (const [part, lie] of lies(frame, name.endsWith("header"))) await refused(() => checkOutput(trusted, publicKey, lie(copy(frame))), part);
    },
  ]);
  return [
    ...outputs,
    ["a failed run is proven, and no lie about it", async () => {
      const trusted = await network();
      const [failed] = (await read("answer-outputs")).failed;
      for (const frame of [await read("executed-failed"), failed]) {
        const check = ({ seq, ledger, ...run }) => checkRun(trusted, seq, ledger, run);
        equal(await check(frame), true, "proven");
        equal(await check({ ...frame, proof: undefined }), false, "not proven");
        for (const [part, lie] of lies(frame, frame === failed)) await refused(() => check(lie(copy(frame))), part);
        await refused(() => check({ ...frame, ok: true }), "another end");
        await refused(() => check({ ...frame, status: "exit code 4" }), "another end");
      }
      const { publicKey } = await user(), output = await read("output-by-results"), { proof } = await read("executed-failed");
      await refused(() => checkOutput(trusted, publicKey, { ...output, proof: { ...proof, path: output.proof.path } }), "exit code 3");
    }],
    ["a ledger's certificate is proven, and no lie about it", async () => {
      const [trusted, { ledger }] = [await network(), await read("answer-ledger")];
      const header = await checkLedger(trusted, ledger);
      equal([header.seq, header.parent, header.time_ms, header.result.status], [5, "04".repeat(32), 1700000005000, "ok"], "the header");
      await refused(() => checkLedger(trusted, { ...ledger, hash: "05".repeat(32) }), "hash");
      await refused(() => checkLedger(trusted, { ...ledger, sigs: ledger.sigs.slice(1) }), "a quorum is 3");
      await refused(() => checkLedger(trusted, { ...ledger, attempt: 0 }), "signature");
      await refused(() => checkLedger(trusted, { ...ledger, header: flip(ledger.header, 182) }), "hash");
    }],
    ["a settlement is proven, and no lie about it", async () => {
      const [trusted, settled] = [await network(), await read("settled")];
      equal(await checkSettled(trusted, settled), true, "proven");
      for (const lie of [{ last: 5 }, { tx: "00".repeat(32) }, { ch: "00".repeat(32) }, { confirmed_length: 31 }, { recorded_in: 7 }]) {
        await refused(() => checkSettled(trusted, { ...settled, ...lie }), "another settlement");
      }
      await refused(() => checkSettled(trusted, { ...settled, proof: { ...settled.proof, sigs: settled.proof.sigs.slice(1) } }), "a quorum is 3");
      const { ledger } = await read("answer-ledger");
      await refused(() => checkSettled(trusted, { ...settled, proof: ledger }), "records no settlement");
    }],
    ["a welcome must fit its chain's genesis and what the user knows", async () => {
      const welcome = await read("welcome"), { chain, unl } = welcome;
      const pinned = await readWelcome(welcome, { chain, unl: [...unl].reverse() });
      equal([pinned.chain, pinned.quorum, pinned.unl.length], [chain, 3, 3], "the network");
      await readWelcome(welcome, { chain });
      for (const lie of [{ threshold: 67 }, { chain: "09".repeat(32) }, { contract: "09".repeat(32) }, { genesis: flip(welcome.genesis, 40) }, { genesis: "AQ==" }, { genesis: "" }]) {
        await refused(() => readWelcome({ ...welcome, ...lie }), Object.keys(lie)[0] === "genesis" && lie.genesis.length < 9 ? "missing" : "genesis");
      }
      await refused(() => readWelcome(welcome, { chain: "01".repeat(32) }), "is of chain");
      const other = await readWelcome(welcome, { unl: unl.slice(1) });
      equal([pinned, other].map((network) => knowsUnl(network, unl)), [true, false], "who is known");
      equal(knowsUnl(await readWelcome({ ...welcome, unl: unl.slice(1) }, { chain }), unl.slice(1)), false, "the chain's name is of its first members");
      for (const bad of [[], [unl[0], unl[0]], ["zz"], Array.from({ length: 129 }, (_, at) => at.toString(16).padStart(64, "0"))]) {
        await refused(() => readWelcome(welcome, { unl: bad }), "a UNL has");
      }
    }],
    ["a change of the members is followed once, and no lie about it", async () => {
      const [trusted, step, { publicKey }] = [await network(), await read("unl"), await user()], before = [...trusted.unl];
      const lies = [[{ sigs: step.sigs.slice(1) }, "a quorum is 3"], [{ attempt: 1 }, "signature"], [{ header: flip(step.header, 182) }, "hash"],
        [{ seq: 8 }, "another ledger"], [{ change: "remove" }, "another change"], [{ node: "22".repeat(32) }, "another change"], [{ node: before[0] }, "another change"]];
      for (const [lie, part] of lies) await refused(() => followUnl(trusted, { ...step, ...lie }), part);
      equal([trusted.unl, knownTo(trusted)], [before, 0], "nothing of it was believed");
      equal([await followUnl(trusted, step), await followUnl(trusted, step)], [true, false], "once");
      equal([trusted.unl, trusted.quorum, knownTo(trusted)], [[...before, step.node].sort(), 4, 7], "the members");
      equal([before, trusted.unl, before.slice(1)].map((unl) => knowsUnl(trusted, unl)), [true, true, false], "who is known");
      for (const name of ["output-by-results", "output-by-header"]) await checkOutput(trusted, publicKey, await read(name));
      const late = await network();
      late.unls.unshift({ ...late.unls[0], unlHash: "00".repeat(32) });
      late.unls[1].since = 6;
      await refused(async () => checkOutput(late, publicKey, await read("output-by-header")), "another UNL");
    }],
    ["an input is signed as the golden one", async () => {
      const [frame, { chain }, key] = [await read("input"), await read("welcome"), await user()];
      const id = await tagged("hp/input/1", unhex(chain), unhex(key.publicKey), new Uint8Array(32), number(frame.nonce, 8), number(frame.max_ledger, 8), vec(unbase64(frame.payload)));
      equal(hex(await key.sign(id)), frame.sig, "the signature");
    }],
    ["a key is read back as it was written, and other text is none", async () => {
      const key = await generateKey(), again = await importKey(` ${key.secret().toUpperCase()}\n`);
      equal([again.publicKey, again.secret()], [key.publicKey, key.secret()], "the key");
      equal((await importKey(key.secret() + key.publicKey)).publicKey, key.publicKey, "with its public half");
      await refused(() => importKey(key.secret() + "00".repeat(32)), "second half");
      for (const text of ["", "00", "zz".repeat(32), "00".repeat(33)]) await refused(() => importKey(text), "64 hexadecimal digits");
    }],
  ];
}
