// The page: asks the node once, and again when an event says that something happened. Nothing is asked on a timer.

import { $, bytes, clock, count, duration, empty, h, keyed, many, moment, ms, say, short, table } from "/page/dom.js";
import { startConsole } from "/page/console.js";
import { startLedgers } from "/page/ledgers.js";
import { startSettlements } from "/page/settlements.js";

const ANSWER_MS = 10_000; // time for an answer
const PAUSE_MS = 400; // between two looks, however much happens
const ROUNDS_SHOWN = 100;
const STAGES = [["executing", "Run"], ["idle", "Wait"], ["novel", "Novel"], ["prevote", "Prevote"], ["precommit", "Precommit"]];
const PARTS = [["novel", "novel"], ["prevote", "prevote"], ["precommit", "precommit"], ["executing", "run"], ["result", "result"]];
const VOTES = [["Novel", "novel"], ["Prevote", "prevote"], ["Precommit", "precommit"], ["Result", "result"]];

// ---- Asking ---------------------------------------------------------------------------------------------------------

/** An answer of the node. Rejects with what the node says is wrong. */
async function get(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), headers: { accept: "application/json" } });
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw Object.assign(new Error(answer?.error ?? `${path}: ${response.status}`), { status: response.status });
  if (answer === null || typeof answer !== "object") throw new Error(`${path}: no JSON`);
  return answer;
}

/** Has `work` done soon, once for many calls, and never twice at a time. */
function soon(work) {
  let wanted = false, busy = false;
  return async function again() {
    wanted = true;
    if (busy) return;
    busy = true;
    while (wanted) {
      wanted = false;
      await work();
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
    busy = false;
  };
}

const list = (value) => (Array.isArray(value) ? value : []);
const ledgers = startLedgers({ get, status: () => status });
const settlements = startSettlements({ get, open: (seq) => ledgers.open(seq) });
const talk = startConsole({ status: () => status, open: (seq) => ledgers.open(seq) });
let status = null, rounds = [], stage = null;

const look = soon(async () => {
  try {
    status = (await get("/v1/status")).node ?? {};
    stage ??= { seq: status.seq + 1, stage: status.stage, attempt: status.attempt };
    connected(true);
    showStatus();
  } catch (error) {
    return connected(false, error);
  }
  try {
    rounds = list((await get("/v1/rounds")).rounds).slice(-ROUNDS_SHOWN);
    showRounds();
  } catch (error) {
    empty($("members"), `The rounds are not known: ${error.message}`);
  }
});
const lookAtLedgers = soon(() => ledgers.refresh());
const lookAtLog = soon(async () => {
  if (!$("log").open) return;
  try {
    const { streams } = await get("/v1/contract/log");
    const parts = list(streams).filter(({ text }) => text).map(({ name, text }) => [h("h3", null, name), h("pre", { tabindex: 0 }, text)]);
    if (parts.length) $("log-text").replaceChildren(...parts.flat());
    else empty($("log-text"), "It has printed nothing.");
  } catch (error) {
    empty($("log-text"), error.message);
  }
});

const RETRY_MS = 3_000; // after the node refused to tell of events

function listen() {
  const events = new EventSource("/v1/events");
  const on = (name, act) => events.addEventListener(name, ({ data }) => {
    let value = null;
    try { value = JSON.parse(data); } catch { /* an event without an object */ }
    act(value ?? {});
  });
  // Whatever was missed while there was no connection is asked for.
  events.addEventListener("open", () => { connected(true); look(); lookAtLedgers(); });
  events.addEventListener("error", () => {
    connected(false);
    // A broken connection is tried again by the browser; a refusal is not.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
  });
  on("stage", (now) => { stage = now; showStage(); });
  on("ledger", () => { look(); lookAtLedgers(); });
  on("run", () => { look(); lookAtLog(); });
  on("result", look);
  for (const name of ["alerts", "users", "peer", "peers", "settlement", "gap", "dropped"]) on(name, look);
}

// ---- Showing --------------------------------------------------------------------------------------------------------

function connected(well, error) {
  $("link").className = `link ${well ? (status?.synced === false ? "is-warn" : "is-ok") : "is-bad"}`;
  say($("link-text"), well ? (status ? (status.synced === false ? "live, node is catching up" : "live") : "asking the node") : "no answer from the node, trying again");
  if (!well && error && !status) for (const id of ["members", "peers", "runs", "settlement"]) empty($(id), `The node does not answer: ${error.message}`);
}

const facts = (place, pairs) => keyed(place, pairs, ([name]) => name, ([name]) => h("div", null, h("dt", null, name), h("dd")), (element, [, value]) => say(element.lastChild, value));
// The same with the value beside its name.
const rows = (place, pairs) => keyed(place, pairs.flatMap(([name, value]) => [{ kind: "dt", name, text: name }, { kind: "dd", name, text: value ?? "–" }]), ({ kind, name }) => `${kind} ${name}`, ({ kind }) => h(kind),
  (element, { kind, text }) => { element.className = kind === "dd" && /^\S{30,}$/.test(text) ? "mono" : ""; say(element, text); });
const who = (key) => h("code", { title: key }, short(key));
const me = () => status.node;

function showStatus() {
  const unl = list(status.unl), live = list(status.live);
  const name = `contract ${short(status.contract)}`;
  say($("which"), `${name} · ${status.role ?? "node"} ${short(status.node)}`);
  document.title = `${count(status.seq)} · Hot Pocket`;
  say($("seq"), count(status.seq));
  facts($("facts"), [
    ["Members live", `${live.length} of ${unl.length}`], ["Quorum", count(status.quorum)], ["Users", count(status.users)],
    ["Inputs waiting", count(status.pool)], ["Closed at", clock(status.time_ms)],
  ]);
  showStage();
  showAlerts();
  showPeers();
  showSettlement();
  rows($("node"), [
    ["Key", status.node], ["Contract", status.contract], ["Chain", status.chain], ["State", status.state_root],
    ["Version", status.version], ["Up", duration(status.up_s)], ["Executed", `${many(status.ledgers, "ledger")}, ${many(status.inputs, "input")} since it started`],
  ]);
  if (!rounds.length) showRuns();
}

function showStage() {
  if (!stage) return;
  const now = stage.stage === "result" ? "novel" : stage.stage;
  const at = STAGES.findIndex(([name]) => name === now);
  keyed($("stages"), STAGES, ([name]) => name, ([name, text]) => h("li", { class: `s-${name}` }, text), (element, [name]) => {
    const is = STAGES.findIndex(([other]) => other === name);
    element.classList.toggle("now", is === at);
    element.classList.toggle("past", is < at);
    if (is === at) element.setAttribute("aria-current", "step");
    else element.removeAttribute("aria-current");
  });
  say($("round-pace"), `Ledger ${count(stage.seq)} is being made${stage.attempt > 0 ? `, attempt ${stage.attempt + 1}` : ""}${pace()}`);
}

function pace() {
  const [first, last] = [rounds[0]?.closed_at_ms, rounds.at(-1)?.closed_at_ms];
  if (!(last > first)) return "";
  const each = (last - first) / (rounds.length - 1);
  return each >= 1000 ? `, one every ${(each / 1000).toFixed(1)} s` : `, ${(1000 / each).toFixed(1)} a second`;
}

function showRounds() {
  const unl = list(status.unl), live = new Set(list(status.live)), suspects = new Set(list(status.suspects)), last = rounds.at(-1);
  const heads = h("span", { class: "votes" }, VOTES.map(([name]) => h("span", { class: "vote" }, name)));
  const body = table($("members"), [["Member"], ["", "narrow-no"], [heads]], "Members, and when their votes of the last round came, in milliseconds");
  keyed(body, unl, (key) => key, (key) => h("tr", { class: key === me() && "own" },
    h("td", null, who(key), key === me() && h("span", { class: "muted narrow-no" }, " this node")), h("td", { class: "narrow-no" }, h("span", { class: "tag" })),
    h("td", null, h("span", { class: "votes" }, VOTES.map(([name, part]) => h("span", { class: `vote s-${part}`, title: name }))))),
  (row, key) => {
    const tag = row.querySelector(".tag");
    const [kind, text] = !live.has(key) ? ["bad", "away"] : suspects.has(key) ? ["warn", "late"] : ["ok", "live"];
    tag.className = `tag ${kind}`;
    say(tag, text);
    const votes = last?.votes?.find(({ node }) => node === key);
    const late = new Set(list(last?.late).filter(({ node }) => node === key).map(({ vote }) => String(vote).toLowerCase()));
    VOTES.forEach(([name, vote], at) => {
      const cell = row.querySelectorAll(".vote")[at], time = votes?.[`${vote}_ms`];
      cell.classList.toggle("in", Number.isFinite(time));
      cell.classList.toggle("late", late.has(vote));
      cell.title = `${name}${Number.isFinite(time) ? ` after ${ms(time)}` : " has not come"}${late.has(vote) ? ", when it was decided already" : ""}`;
      say(cell, Number.isFinite(time) ? ms(time).replace(" ms", "") : late.has(vote) ? "late" : "–");
    });
  });
  showChart();
  showRuns();
  showStage();
}

function showChart() {
  const shown = rounds.filter(({ stages_ms }) => stages_ms);
  $("chart-figure").hidden = shown.length < 2;
  if (shown.length < 2) return;
  const works = shown.map(({ stages_ms }) => PARTS.reduce((sum, [part]) => sum + (stages_ms[part] ?? 0), 0));
  const top = Math.max(...works, 1);
  const bars = shown.flatMap(({ stages_ms }, at) => {
    let y = 100;
    return PARTS.map(([part]) => {
      const height = ((stages_ms[part] ?? 0) / top) * 96;
      y -= height;
      return h("rect", { class: `s-${part}`, x: (ROUNDS_SHOWN - shown.length + at) * 10 + 1, y: y.toFixed(2), width: 8, height: height.toFixed(2) });
    });
  });
  const sorted = [...works].sort((a, b) => a - b), median = sorted[Math.floor(sorted.length / 2)];
  const text = `Ledgers ${count(shown[0].seq)} to ${count(shown.at(-1).seq)}, without waiting: median ${ms(median)}, longest ${ms(top)}.`;
  $("chart").replaceChildren(h("svg", { viewBox: `0 0 ${ROUNDS_SHOWN * 10} 100`, preserveAspectRatio: "none", role: "img", "aria-label": text }, bars));
  say($("chart-text"), text);
  if (!$("legend").childElementCount) $("legend").append(...PARTS.map(([part, name]) => h("span", { class: `s-${part}` }, h("i"), name)));
}

function showRuns() {
  const runs = rounds.filter(({ run }) => run).slice(-8).reverse();
  if (!runs.length && status.last_run) runs.push({ seq: status.last_run.seq, run: status.last_run });
  say($("runs-count"), status.failed_runs ? `${count(status.failed_runs)} failed since the node started` : "");
  if (!runs.length) return empty($("runs"), "The contract has not run yet on this node.");
  const body = table($("runs"), [["Ledger"], ["Ended"], ["Contract", "num"], ["In all", "num narrow-no"], ["Inputs", "num narrow-no"], ["Output", "num"]], "The last runs of the contract");
  keyed(body, runs, ({ seq }) => seq, ({ seq }) => h("tr", null, h("td", null, count(seq)), h("td", null, h("span")), h("td", { class: "num" }), h("td", { class: "num narrow-no" }), h("td", { class: "num narrow-no" }), h("td", { class: "num" })),
    ({ children }, { run, inputs }) => {
      children[1].firstChild.className = `tag ${run.status === "ok" ? "ok" : "bad"}`;
      [run.status, ms(run.contract_ms), ms(run.elapsed_ms), count(inputs), bytes(run.output_bytes)].forEach((text, at) => say(at ? children[at + 1] : children[1].firstChild, text));
    });
}

function showPeers() {
  const links = list(status.links), suspects = new Set(list(status.suspects));
  say($("peers-count"), many(links.length, "link"));
  if (!links.length) return empty($("peers"), list(status.unl).length > 1 ? "No link to another node: nothing is agreed on until there are some." : "The only member needs no peers.");
  const body = table($("peers"), [["Node"], ["Address", "narrow-no"], ["Lag", "num"], ["", ""]], "Links to other nodes");
  keyed(body, links, ({ peer }) => peer, ({ peer }) => h("tr", null, h("td", null, who(peer)), h("td", { class: "mono narrow-no" }), h("td", { class: "num" }), h("td", null, h("span"))),
    ({ children }, { peer, address, rtt_us, member }) => {
      say(children[1], address);
      say(children[2], Number.isFinite(rtt_us) ? ms(rtt_us / 1000) : "–");
      const late = rounds.filter((round) => list(round.late).some(({ node }) => node === peer)).length;
      const [kind, text] = suspects.has(peer) ? ["warn", "suspect"] : rounds.length >= 10 && late > rounds.length / 5 ? ["warn", `late in ${late} of ${rounds.length}`] : member ? ["ok", "member"] : ["", "observer"];
      children[3].firstChild.className = `tag ${kind}`;
      say(children[3].firstChild, text);
    });
}

function showSettlement() {
  const now = status.settlement;
  if (!now) return empty($("settlement"), "This node settles nothing: [msb] mode is off.");
  const place = $("settlement").querySelector("dl") ?? h("dl", { class: "facts wide" });
  if (!place.isConnected) $("settlement").replaceChildren(place);
  rows(place, [
    ["Settled up to", now.settled_seq ? `ledger ${count(now.settled_seq)}` : "nothing yet"], ["Waiting", many(now.unsettled_ledgers, "ledger")],
    ["Bus", now.reachable === false ? "not reachable" : now.reachable ? "reachable" : "not asked yet"],
    ["Balance", now.balance === null ? "–" : `${now.balance}${Number.isFinite(now.settlements_left) ? `, enough for ${many(now.settlements_left, "settlement")}` : ""}`],
    ["Under way", now.pending ? `ledgers ${count(now.pending.first)} to ${count(now.pending.last)}, ${now.pending.state}` : "nothing"],
    ["Transaction", now.settled_tx && !/^0+$/.test(now.settled_tx) ? now.settled_tx : "none yet"], ["Address", now.address], ["Network", now.network],
  ]);
  settlements.refresh(now.settled_seq);
}

function showAlerts() {
  const severe = (text) => /^(diverging|split|halted)|do not agree|differ|are split/i.test(text);
  const alerts = [
    ...(status.halted ? ["Halted: the nodes' results differ and none has a quorum. Inputs are held until one has."] : []),
    ...list(status.evidence).map(({ node, kind, seq, count: times }) => `Evidence: ${short(node)} signed two different ${kind} messages (${many(times, "time")}, the last for ledger ${count(seq)}).`),
    ...list(status.liars).map(({ node, what, count: times }) => `${short(node)} sent false ledgers (${many(times, "time")}): ${what}`),
    ...list(status.alerts),
  ];
  keyed($("alerts"), [...new Set(alerts)], (text) => text, (text) => h("p", { class: `banner ${severe(text) ? "bad" : ""}` }, h("b", null, severe(text) ? "Alert" : "Note"), text));
}

// ---- The page itself ------------------------------------------------------------------------------------------------

function startTheme() {
  const kept = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } }, set: (value) => { try { localStorage.setItem("theme", value); } catch { /* not kept */ } } };
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const show = () => { say($("theme"), dark() ? "Light" : "Dark"); $("theme").setAttribute("aria-label", `Change to ${dark() ? "light" : "dark"} colours`); };
  const chosen = kept.get();
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  $("theme").addEventListener("click", () => {
    kept.set((document.documentElement.dataset.theme = dark() ? "light" : "dark"));
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

startTheme();
$("log").addEventListener("toggle", lookAtLog);
look();
lookAtLedgers();
listen();
talk.start();
