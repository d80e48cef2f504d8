// The console: a key that stays in this page, a connection in signed mode, inputs, and outputs whose proof was checked here.

import { $, count, h, ms, payload, say, short } from "/page/dom.js";
import { connect, generateKey, importKey } from "/page/hotpocket.js";

const ENTRIES_MAX = 200; // of the talk; past it the oldest are dropped
const KEY_FILE_MAX = 4096;

export function startConsole({ status, open }) {
  const place = $("console");
  let key = null, client = null, busy = false;
  const entries = new Map(); // by ledger, those whose output may come
  const talk = h("ol", { class: "talk", id: "talk", "aria-label": "What was sent and what came back", "aria-live": "polite", tabindex: 0 });
  const keyStep = h("div", { class: "step" }), nodeStep = h("div", { class: "step" }), sendStep = h("div", { class: "step" });
  const trouble = h("p", { class: "error", role: "alert", hidden: true });

  function complain(text) {
    trouble.hidden = !text;
    say(trouble, text ?? "");
  }
  const attempt = (work) => async (event) => {
    event?.preventDefault();
    complain(null);
    try { await work(event); } catch (error) { complain(error.message); }
  };

  async function start() {
    if (!globalThis.crypto?.subtle) {
      return place.replaceChildren(h("p", { class: "note", id: "no-crypto" }, "Keys need a page that browsers call secure: over https, or on localhost. This one came over plain http from another host, where there is no WebCrypto. Give the node a certificate ([http] tls_cert and tls_key), or open it through a tunnel: ssh -L. Everything else on this page works."));
    }
    try { await generateKey(); } catch {
      return place.replaceChildren(h("p", { class: "note", id: "no-crypto" }, "This browser cannot sign with Ed25519, which keys need: Chrome 137, Firefox 129 and Safari 17 can. Everything else on this page works."));
    }
    place.replaceChildren(keyStep, nodeStep, sendStep, trouble, talk);
    drawKey();
    drawNode();
    drawSend();
  }

  // ---- The key ------------------------------------------------------------------------------------------------------

  function drawKey() {
    // What had the focus is gone: it goes on to what comes next.
    const take = (found) => { key = found; drawKey(); drawNode(); (key ? connecting : $("make-key")).focus(); };
    if (key) {
      const save = () => {
        const url = URL.createObjectURL(new Blob([`${key.secret()}\n`], { type: "text/plain" }));
        h("a", { href: url, download: "client.key" }).click();
        URL.revokeObjectURL(url);
      };
      keyStep.replaceChildren(h("p", { class: "muted" }, "Your key, which is who you are to the contract"), h("code", { class: "key", id: "public-key" }, key.publicKey),
        h("div", { class: "row" }, h("button", { type: "button", onclick: save }, "Save the secret to a file"), h("button", { type: "button", class: "quiet", onclick: attempt(() => { leave(); take(null); }) }, "Forget it")));
      return;
    }
    const file = h("input", { type: "file", id: "key-file", hidden: true, onchange: attempt(async () => {
      const [chosen] = file.files;
      if (!chosen) return;
      if (chosen.size > KEY_FILE_MAX) throw new Error(`${chosen.name} is too long for a key`);
      take(await importKey(await chosen.text()));
    }) });
    const text = h("input", { type: "password", id: "key-text", autocomplete: "off", spellcheck: "false" });
    keyStep.replaceChildren(
      h("p", { class: "muted" }, "A key says who you are. It stays in this page, and is gone with it unless you save it."),
      h("div", { class: "row" }, h("button", { type: "button", class: "primary", id: "make-key", onclick: attempt(async () => take(await generateKey())) }, "Make a key"), h("button", { type: "button", onclick: () => file.click() }, "Load a key file"), file),
      h("details", null, h("summary", null, "Type a secret key in"), h("form", { onsubmit: attempt(async () => take(await importKey(text.value))) },
        h("label", { for: "key-text" }, "64 hexadecimal digits"), h("div", { class: "row" }, h("span", { class: "grow" }, text), h("button", { type: "submit" }, "Use it")))));
  }

  // ---- The connection -----------------------------------------------------------------------------------------------

  // The node's own user port, at the host that this page came from.
  function userPort() {
    const port = String(status()?.user_address ?? "").match(/:(\d+)$/)?.[1];
    return port ? `${status().user_tls ? "wss" : "ws"}://${location.hostname}:${port}` : "";
  }

  const url = h("input", { id: "node-url", autocomplete: "off", spellcheck: "false", inputmode: "url" });
  const pin = h("input", { id: "chain", autocomplete: "off", spellcheck: "false", placeholder: "the chain's id, from somebody you trust" });
  const connecting = h("button", { type: "submit", class: "primary", id: "connect" }, "Connect");

  function drawNode() {
    nodeStep.hidden = !key;
    if (client) {
      const { network } = client;
      nodeStep.replaceChildren(h("p", { class: "muted" }, `Outputs are shown when ${network.quorum} of ${network.unl.length} members signed for them. ${pin.value ? "The chain's id is the one you gave." : `Who they are this node says: chain ${short(network.chain)}.`}`),
        h("div", { class: "row" }, h("button", { type: "button", class: "quiet", onclick: () => { leave(); connecting.focus(); } }, "Disconnect")));
      return;
    }
    url.value ||= userPort();
    nodeStep.replaceChildren(h("form", { onsubmit: attempt(join) }, h("label", { for: "node-url" }, "Node"), h("div", { class: "row" }, h("span", { class: "grow" }, url), connecting),
      h("details", null, h("summary", null, "Only this chain"), h("label", { for: "chain" }, "Refuse a node of any other"), pin)));
  }

  async function join() {
    if (busy) return;
    if (!url.value) throw new Error("this node has no port for users; name another node, ws://HOST:PORT");
    busy = true;
    shown("", "connecting");
    try {
      client = await connect(url.value.split(/[ ,]+/).filter(Boolean), key, { chain: pin.value.trim() || undefined });
    } catch (error) {
      shown("is-bad", "not connected");
      throw error;
    } finally {
      busy = false;
    }
    client.addEventListener("state", ({ detail }) => {
      if (detail.state === "open") shown("is-ok", `connected to ${detail.url}`);
      else if (detail.state === "closed") leave();
      else shown("is-warn", "connection lost, trying again");
    });
    client.addEventListener("output", ({ detail }) => entries.has(detail.seq) || pushed(detail));
    client.addEventListener("settled", ({ detail }) => settled(detail));
    client.addEventListener("notice", ({ detail }) => note(`${detail.code}: ${detail.message}`));
    shown("is-ok", `connected to ${client.url}`);
    drawNode();
    drawSend();
    input.focus();
  }

  function leave() {
    const left = client;
    client = null;
    left?.close();
    entries.clear();
    shown("", "not connected");
    drawNode();
    drawSend();
  }

  function shown(kind, text) {
    $("session").className = `link ${kind}`;
    say($("session").lastElementChild, text);
  }

  // ---- The talk -----------------------------------------------------------------------------------------------------

  const input = h("textarea", { id: "input", rows: 2, spellcheck: "false", "aria-describedby": "input-hint" });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) attempt(send)(event);
  });
  sendStep.append(h("form", { onsubmit: attempt(send) }, h("label", { for: "input" }, "Input to the contract"), input,
    h("div", { class: "row" }, h("button", { type: "submit", class: "primary", id: "send" }, "Send"), h("button", { type: "button", id: "ask", onclick: attempt(ask) }, "Only ask"),
      h("span", { class: "muted", id: "input-hint" }, "Enter sends, Shift+Enter begins a line"))));

  function drawSend() {
    sendStep.hidden = !client;
  }

  function entry(text, kind = "") {
    const marks = h("div", { class: "marks" }), when = h("span", { class: "muted" }, new Date().toLocaleTimeString("en-GB"));
    const element = h("li", { class: kind }, h("div", { class: "sent" }, h("span", null, text), when), marks);
    talk.prepend(element);
    while (talk.childElementCount > ENTRIES_MAX) talk.lastElementChild.remove();
    return { element, marks, mark: (kind, text) => marks.appendChild(h("span", { class: `tag ${kind}` }, text)) };
  }
  const ledgerLink = (seq) => h("button", { type: "button", class: "link", onclick: () => open(String(seq)) }, `Open ledger ${count(seq)}`);
  const answer = (bytes) => h("pre", { class: "output", tabindex: 0 }, payload(bytes));
  const note = (text) => entry(text, "note").marks.remove();

  function send() {
    const text = input.value;
    if (!text) return;
    const began = performance.now(), sent = client.submit(text), shown = entry(text);
    input.value = "";
    const state = shown.mark("", "signed and sent");
    sent.accepted.then(({ seq }) => {
      remember(seq, shown);
      state.className = "tag ok";
      say(state, `accepted in ledger ${count(seq)}, ${ms(performance.now() - began)}`);
      shown.marks.append(ledgerLink(seq));
    }, (error) => {
      state.className = "tag bad";
      say(state, `rejected: ${error.code}`);
      shown.element.append(h("p", { class: "error" }, error.message));
    });
    sent.output.then((output) => {
      if (!output) return shown.mark("", "no output");
      shown.marks.insertBefore(h("span", { class: "tag ok proven" }, `proven by ${output.signers} of ${output.members} members`), shown.marks.lastChild);
      finality(shown, output);
      shown.element.append(answer(output.payload));
    }, (error) => {
      if (error.code !== "contract_failed") return;
      shown.mark("bad", error.proven ? "contract failed, as members signed" : "contract failed, as this node says");
      shown.element.append(h("p", { class: "error" }, error.message));
    });
  }

  async function ask() {
    const text = input.value, shown = entry(text || "(nothing)"), state = shown.mark("", "asked");
    try {
      const { seq, payload: bytes } = await client.read(text);
      state.className = "tag warn";
      say(state, `this node's word alone, on the state after ledger ${count(seq)}`);
      shown.element.append(answer(bytes));
    } catch (error) {
      state.className = "tag bad";
      say(state, `no answer: ${error.code}`);
      shown.element.append(h("p", { class: "error" }, error.message));
    }
  }

  function pushed(output) {
    const shown = entry("The contract wrote to you");
    shown.mark("ok", `proven by ${output.signers} of ${output.members} members`);
    shown.marks.append(ledgerLink(output.seq));
    shown.element.append(answer(output.payload));
    finality(shown, output);
    if (output.final !== true) remember(output.seq, shown);
  }

  // What is told of the settlement of this ledger belongs to these.
  function remember(seq, shown) {
    entries.set(seq, [...(entries.get(seq) ?? []), shown]);
    if (entries.size > ENTRIES_MAX) entries.delete(entries.keys().next().value);
  }

  // Only a network whose outputs are final when they are settled says anything about it.
  function finality(shown, output) {
    if (output.final === false) shown.waits = shown.mark("warn waits", "not final until it is settled");
    if (output.final === true) shown.mark("ok settled", "final: settled");
  }

  function settled({ last, tx }) {
    for (const [at, sent] of entries) {
      if (at > last) continue;
      for (const shown of sent) {
        const was = shown.waits;
        shown.mark("ok settled", `${was ? "final: settled" : "settled"} in ${short(tx)}`);
        was?.remove();
      }
      entries.delete(at);
    }
  }

  return { start };
}
