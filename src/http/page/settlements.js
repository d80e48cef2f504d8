// What was settled, newest first, as the chain records it: which ledgers, when, and in which transaction of the bus.

import { $, count, h, keyed, moment, say, short, table } from "/page/dom.js";

const PAGE = 5; // settlements asked for at once
const KEPT_MAX = 100; // in the list; past it no older ones are asked for

/** `refresh(settled)` brings what is new, when that is another last settled ledger than before. */
export function startSettlements({ get, open }) {
  const known = new Map(); // by last ledger
  let newest = 0;

  function take({ settlements }) {
    for (const one of Array.isArray(settlements) ? settlements : []) if (Number.isSafeInteger(one?.last) && Number.isSafeInteger(one.first)) known.set(one.last, one);
  }

  async function refresh(settled) {
    if (!(settled > newest)) return;
    try {
      const answer = await get(newest ? `/v1/settlements?from=${newest + 1}&limit=100` : `/v1/settlements?limit=${PAGE}`);
      // More than fit one answer: it begins anew.
      if (newest && answer.settlements.at(-1)?.last < answer.settled_seq) {
        known.clear();
        take(await get(`/v1/settlements?limit=${PAGE}`));
      } else take(answer);
      newest = Math.max(newest, ...known.keys());
      show();
    } catch { /* the next settlement asks again */ }
  }

  const sorted = () => [...known.values()].sort((a, b) => b.last - a.last).slice(0, KEPT_MAX);

  function show() {
    const shown = sorted();
    $("settlements").hidden = !shown.length;
    if (!shown.length) return;
    const body = table($("settlements"), [["Ledgers"], ["Recorded"], ["Transaction"]], "Settlements, newest first");
    keyed(body, shown, ({ last }) => last, (one) => h("tr", null,
      h("td", null, one.first === one.last ? count(one.last) : `${count(one.first)} to ${count(one.last)}`),
      h("td", null, h("button", { type: "button", class: "link", title: `in ledger ${count(one.recorded_in)}`, onclick: () => open(String(one.recorded_in)) }, h("span"))),
      h("td", null, h("code", { title: one.tx }, short(one.tx)))),
    ({ children }, one) => say(children[1].firstChild.firstChild, moment(one.time)));
    $("older-settlements").hidden = shown.at(-1).first <= 1 || shown.length >= KEPT_MAX;
  }

  $("older-settlements").addEventListener("click", async () => {
    take(await get(`/v1/settlements?before=${sorted().at(-1).first}&limit=${PAGE}`).catch(() => ({})));
    show();
  });

  return { refresh };
}
