// The list of ledgers, and one of them in detail: what it says is checked here, in the browser, against the network's signatures.

import { $, clock, count, empty, h, keyed, many, moment, payload, say, short, table } from "/page/dom.js";
import { base64, checkLedger, hex, knowsUnl, makeNetwork, number, readWelcome, tagged, unhex, vec } from "/page/proof.js";

const PAGE = 20; // ledgers asked for at once
const KEPT_MAX = 400; // in the list; past it the oldest are dropped, and may be asked for again
const AGAIN = 6; // the newest whose run may not have been agreed on are asked for again
const ITEMS_MAX = 100; // inputs and outputs shown; the rest is counted
const U64 = (value) => Number.isSafeInteger(value);

/** `refresh()` brings what is new, `open(which)` shows one. */
export function startLedgers({ get, status }) {
  const known = new Map();
  const dialog = $("ledger");
  let newest = 0, opened = 0, shown = false;

  async function refresh() {
    try {
      // Far behind, it begins anew.
      const unsure = [...known.values()].slice(-AGAIN).find(({ agreed }) => !agreed)?.seq ?? newest + 1;
      const answer = await get(newest ? `/v1/ledgers?from=${Math.min(unsure, newest + 1)}&limit=100` : `/v1/ledgers?limit=${PAGE}`);
      const first = newest === 0;
      take(answer.ledgers);
      if (answer.tip > newest) {
        known.clear();
        take((await get(`/v1/ledgers?limit=${PAGE}`)).ledgers);
      }
      show(first);
    } catch (error) {
      if (!known.size) empty($("ledgers"), `The ledgers cannot be read: ${error.message}`);
    }
  }

  function take(ledgers) {
    for (const ledger of Array.isArray(ledgers) ? ledgers : []) if (U64(ledger?.seq)) known.set(ledger.seq, ledger);
    const sorted = [...known.entries()].sort(([a], [b]) => a - b).slice(-KEPT_MAX);
    known.clear();
    sorted.forEach(([seq, ledger]) => known.set(seq, ledger));
    newest = sorted.at(-1)?.[0] ?? 0;
  }

  function show(first) {
    const ledgers = [...known.values()].reverse();
    if (!ledgers.length) return empty($("ledgers"), "No ledger is closed yet.");
    const body = table($("ledgers"), [["Ledger"], ["Closed", "narrow-no"], ["Inputs", "num"], ["Users", "num narrow-no"], ["Signed by", "num"], ["Run"]], "Closed ledgers, newest first");
    keyed(body, ledgers, ({ seq }) => seq, ({ seq }) => h("tr", { class: first ? "" : "fresh" },
      h("td", null, h("a", { class: "row-link", href: `#ledger/${seq}` }, count(seq))), h("td", { class: "narrow-no" }), h("td", { class: "num" }), h("td", { class: "num narrow-no" }), h("td", { class: "num" }), h("td", null, h("span"))),
    ({ children }, ledger) => {
      [clock(ledger.time), count(ledger.inputs), count(ledger.users), `${count(ledger.signers)} of ${count(ledger.members)}`].forEach((text, at) => say(children[at + 1], text));
      const tag = children[5].firstChild;
      tag.className = `tag ${ledger.run === null ? "" : ledger.run === "ok" ? (ledger.agreed ? "ok" : "") : "bad"}`;
      tag.title = ledger.agreed ? "as the next ledger says" : "this node's own result; the network's is not in a ledger yet";
      say(tag, ledger.run === null ? "running" : ledger.agreed ? ledger.run : `${ledger.run}, own`);
    });
    $("older").hidden = ledgers.at(-1).seq <= 1 || known.size >= KEPT_MAX;
  }

  $("older").addEventListener("click", async () => {
    const oldest = known.keys().next().value;
    const from = Math.max(1, oldest - PAGE);
    take((await get(`/v1/ledgers?from=${from}&limit=${oldest - from}`).catch(() => ({}))).ledgers);
    show(true);
  });

  // ---- One ledger ---------------------------------------------------------------------------------------------------

  async function detail(which) {
    const mine = ++opened, place = $("ledger-body");
    shown = true;
    say($("ledger-title"), /^\d+$/.test(which) ? `Ledger ${count(Number(which))}` : `Ledger ${short(which)}`);
    empty(place, "Asking the node.");
    if (!dialog.open) dialog.showModal();
    $("ledger-title").focus();
    try {
      const ledger = await get(`/v1/ledgers/${encodeURIComponent(which)}`);
      const now = status() ?? (await get("/v1/status")).node;
      if (!U64(ledger.seq)) throw new Error("ledger 0 is the chain's beginning and has no certificate");
      const [beginning, next] = await Promise.all([get("/v1/ledgers/0"), ledger.result && get(`/v1/ledgers/${ledger.seq + 1}`).catch(() => null)]);
      const found = await verify(which, ledger, next, beginning, now);
      if (mine !== opened) return;
      say($("ledger-title"), `Ledger ${count(ledger.seq)}`);
      draw(place, ledger, found);
    } catch (error) {
      if (mine === opened) place.replaceChildren(h("p", { class: "error" }, `It cannot be shown: ${error.message}`));
    }
  }

  function draw(place, ledger, { verdict, checks, header }) {
    const signatures = ledger.certificate?.signatures ?? [];
    const link = (seq, text) => h("a", { href: `#ledger/${seq}` }, text);
    const facts = [
      ["Closed", `${moment(header.time_ms)}, in attempt ${count((ledger.certificate?.attempt ?? 0) + 1)}`], ["Hash", h("span", { class: "mono hash" }, ledger.hash)],
      ["Parent", ledger.seq > 1 ? link(ledger.seq - 1, short(header.parent)) : "the chain's beginning"], ["Users", count(header.n_users)],
      ["Inputs", `${count(header.n_inputs)}, ${count(header.inputs_bytes)} bytes`], ["State before", h("span", { class: "mono hash" }, header.result.state_root)],
      ["Members", `${count(ledger.unl?.length)}; signed: ${signatures.map(({ node }) => short(node)).join(" ")}`],
    ];
    if (header.settlement?.seq) facts.push(["Settled up to", `ledger ${count(header.settlement.seq)}, transaction ${short(header.settlement.tx)}`]);
    const inputs = ledger.body?.inputs, outputs = ledger.outputs;
    const items = (all, what, none, make) => [
      h("h3", null, what), !all ? h("p", { class: "empty" }, `This node does not keep them any more.`) : !all.length ? h("p", { class: "empty" }, none)
        : h("ul", { class: "items" }, all.slice(0, ITEMS_MAX).map(make)), all?.length > ITEMS_MAX && h("p", { class: "muted" }, `and ${count(all.length - ITEMS_MAX)} more`),
    ];
    place.replaceChildren(
      h("div", { class: `verdict ${verdict.kind}`, id: "verdict", role: "status" }, h("strong", null, verdict.title), verdict.text),
      h("ul", { class: "checks" }, checks.map(({ kind, name, text }) => h("li", { class: kind }, h("span", { class: "mark", "aria-hidden": "true" }, { ok: "✓", bad: "✗" }[kind] ?? "–"), h("span", null, `${name}: ${text}`)))),
      h("h3", null, "What it says"), h("dl", { class: "facts wide" }, facts.flatMap(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
      ...[items(inputs, "Inputs", "Nobody sent anything.", ({ user, payload: text, missing, id }) => h("li", null, h("code", { title: user }, short(user ?? id)), missing ? h("p", { class: "empty" }, "not kept any more") : h("pre", { tabindex: 0 }, payload(unhex(text))))),
        items(outputs, "Outputs", "The contract wrote to nobody.", ({ user, bytes }) => h("li", null, h("code", { title: user }, short(user)), h("pre", { tabindex: 0 }, payload(unhex(bytes)))))].flat().filter(Boolean),
    );
  }

  const route = () => {
    const which = location.hash.match(/^#ledger\/([0-9a-f]{1,64})$/)?.[1];
    if (which) detail(which);
    else if (dialog.open) leave();
  };
  // All at once: the event of a closed dialog comes later, when another ledger may have been asked for.
  const leave = () => {
    opened += 1;
    shown = false;
    if (location.hash.startsWith("#ledger/")) history.replaceState(null, "", location.pathname);
    dialog.close();
  };
  dialog.addEventListener("close", () => shown && !dialog.open && leave());
  dialog.addEventListener("click", ({ target }) => target === dialog && leave());
  $("ledger-close").addEventListener("click", leave);
  $("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const which = $("find-ledger").value.trim().toLowerCase().replace(/[ ,]/g, "");
    if (/^([1-9]\d{0,15}|[0-9a-f]{64})$/.test(which)) open(which);
    else $("find-ledger").setCustomValidity("a number from 1, or a hash of 64 digits"), $("find-ledger").reportValidity();
  });
  $("find-ledger").addEventListener("input", () => $("find-ledger").setCustomValidity(""));
  const open = (which) => {
    if (location.hash === `#ledger/${which}`) route();
    else location.hash = `#ledger/${which}`;
  };
  addEventListener("hashchange", route);
  route();
  return { refresh, open };
}

// ---- The check ------------------------------------------------------------------------------------------------------

const certificate = (ledger) => ({ hash: ledger.hash, header: base64(unhex(ledger.header_bytes)), attempt: ledger.certificate.attempt, sigs: ledger.certificate.signatures.map(({ node, sig }) => [node, sig]) });

/** What of a ledger holds: a verdict, the checks, and the header (that of the checked bytes where it was checked). */
async function verify(which, ledger, next, beginning, now) {
  const checks = [], header = ledger.header;
  const check = async (name, work) => {
    try {
      const text = await work();
      checks.push({ kind: text === null ? "" : "ok", name, text: text ?? "cannot be told: this node does not keep it" });
      return true;
    } catch (error) {
      checks.push({ kind: "bad", name, text: error.message });
      return false;
    }
  };
  if (!globalThis.crypto?.subtle) {
    return { checks, header, verdict: { kind: "", title: "Not checked", text: "Browsers have no WebCrypto on plain http from another host. Open the page over https or on localhost to have it checked. What follows is what this node says." } };
  }
  let network, proven, first;
  const name = { genesis: base64(unhex(beginning.genesis_bytes)), chain: now.chain, contract: now.contract, threshold: now.threshold, unl: ledger.unl };
  const wellKnown = await check("Members", async () => {
    const begun = await readWelcome(name);
    first = knowsUnl(begun, ledger.unl);
    network = first ? begun : await makeNetwork(now.chain, ledger.unl, now.threshold);
    return first ? `the ${many(network.unl.length, "member")} that the chain's id ${short(now.chain)} stands for` : `${many(network.unl.length, "member")}, as this node names them: they have changed since the chain began`;
  });
  const holds = wellKnown && (await check("Certificate", async () => {
    proven = await checkLedger(network, certificate(ledger));
    if (proven.seq !== ledger.seq || (which.length === 64 && which !== ledger.hash) || (which.length < 64 && Number(which) !== proven.seq)) throw new Error("it is of another ledger than the one that was asked for");
    return `${ledger.certificate.signatures.length} valid signatures of members over the header's hash, ${network.quorum} are needed`;
  }));
  if (!holds) return { checks, header, verdict: { kind: "bad", title: "Not verified", text: `Do not believe this ledger: ${checks.at(-1).text}.` } };
  const contents = await check("Inputs", () => checkInputs(network, proven, ledger.body?.inputs));
  const led = await check("Result", async () => {
    if (!next) return null;
    const sealed = await checkLedger(await makeNetwork(now.chain, next.unl, now.threshold), certificate(next));
    if (sealed.seq !== ledger.seq + 1 || sealed.parent !== ledger.hash) throw new Error("the next ledger does not follow this one");
    const result = sealed.result, outputs = ledger.outputs;
    if (outputs && hex(await outputsRoot(outputs)) !== result.outputs_root) throw new Error("the outputs shown are not those that were agreed on");
    return `the run ended with "${result.status}", and ledger ${count(sealed.seq)} is signed for that${!outputs ? "" : !outputs.length ? ", and so that it wrote nothing" : `, and for ${outputs.length === 1 ? "the output" : `the ${count(outputs.length)} outputs`} below`}`;
  });
  if (!next) checks.at(-1).text = "no next ledger is closed yet, which would say how the run ended";
  if (!contents || !led) return { checks, header: proven, verdict: { kind: "bad", title: "Not verified", text: `The header is signed, but what this node shows with it does not fit: ${checks.find(({ kind }) => kind === "bad").text}.` } };
  const text = `Checked in this browser: ${ledger.certificate.signatures.length} of ${network.unl.length} members signed it, ${network.quorum} are enough.`;
  return { checks, header: proven, verdict: { kind: "ok", title: "Verified", text } };
}

async function checkInputs(network, header, inputs) {
  if (!inputs) return null;
  const root = await tagged("hp/inputs/1", number(inputs.length, 4), ...inputs.map(({ id }) => unhex(id, 32)));
  if (hex(root) !== header.inputs_root) throw new Error("the inputs shown are not those of the header");
  let known = 0;
  for (const { id, user, origin, nonce, max_ledger, payload: text, missing } of inputs) {
    if (missing || !U64(nonce) || !U64(max_ledger)) continue;
    const tag = origin.kind === "session" ? await tagged("hp/session/1", unhex(origin.host, 32), unhex(origin.challenge, 16)) : new Uint8Array(32);
    const found = await tagged("hp/input/1", unhex(network.chain), unhex(user, 32), tag, number(nonce, 8), number(max_ledger, 8), vec(unhex(text)));
    if (hex(found) !== id) throw new Error(`the input ${short(id)} shown is not the one that was agreed on`);
    known += 1;
  }
  if (!inputs.length) return "there are none, as the header says";
  return known === inputs.length ? `${inputs.length === 1 ? "it is" : `all ${count(inputs.length)} are`} what the header names` : `${count(inputs.length)} ids are what the header names, ${count(known)} contents fit them`;
}

async function outputsRoot(outputs) {
  let level = await Promise.all(outputs.map(async ({ user, bytes }) => tagged("hp/output/1", unhex(user, 32), await tagged("hp/output-bytes/1", vec(unhex(bytes))))));
  while (level.length > 1) {
    const pairs = Array.from({ length: Math.ceil(level.length / 2) }, (_, at) => level.slice(2 * at, 2 * at + 2));
    level = await Promise.all(pairs.map((pair) => (pair.length === 2 ? tagged("hp/node/1", ...pair) : pair[0])));
  }
  return level[0] ?? new Uint8Array(32);
}
