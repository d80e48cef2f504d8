// The page in headless Chromium, against real networks: what a person does, and what a node that lies could try.

import assert from "node:assert/strict";
import { mkdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { start, startSettling } from "../../clients/js/test/network.js";

const root = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const TARGET = process.env.HP_BROWSER_DIR ?? root("target/browser");
const { chromium } = createRequire(`${TARGET}/`)("playwright-core");
const SHOTS = `${TARGET}/shots`;
// Of another host as far as the browser knows, so that it has no WebCrypto there.
const ELSEWHERE = "192.0.2.7";
const DEADLINE_MS = 30_000;
const HOSTILE = "<img src=x onerror=\"globalThis.hit=1\"><script>globalThis.hit=2</script> & more";

let network, browser, axe;
before(async () => {
  await mkdir(SHOTS, { recursive: true });
  axe = await readFile(`${TARGET}/node_modules/axe-core/axe.min.js`, "utf8");
  network = await start(4);
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", `--host-resolver-rules=MAP ${ELSEWHERE} 127.0.0.1`],
  });
}, { timeout: 90_000 });
after(async () => {
  await browser?.close();
  await network?.stop();
});

/** A fresh page of the first node, whose every error fails the test. */
async function open(t, options = {}, { path = "", origin = network.pages[0], prepare } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  t.after(() => context.close());
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(`error: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && page.problems.push(`console: ${message.text()}`));
  await prepare?.(page);
  await page.goto(`${origin}/${path}`);
  return page;
}
const loaded = (page) => page.waitForSelector("#ledgers tbody tr");
const shot = (page, name) => page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
const text = (page, selector) => page.textContent(selector);

async function join(page) {
  await page.click("#make-key");
  await page.click("#connect");
  await page.waitForSelector("#session.is-ok");
}
async function say(page, input) {
  await page.fill("#input", input);
  await page.click("#send");
}
const first = (page, selector = "") => page.locator(`#talk > li:first-child ${selector}`);

async function serious(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const bad = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  assert.deepEqual(bad.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join(" | ")}`), [], what);
}

const test_ = (name, work) => test(name, { timeout: 90_000 }, async (t) => {
  const pages = [];
  await work(t, async (...args) => {
    const page = await open(t, ...args);
    pages.push(page);
    return page;
  });
  for (const page of pages) assert.deepEqual(page.problems, [], name);
});

test_("it is there before any data is", async (t, open) => {
  const held = [];
  const page = await open({}, { prepare: (page) => page.route("**/v1/**", (route) => held.push(route)) });
  assert.equal(await text(page, "h1"), "Hot Pocket");
  await page.waitForFunction(() => performance.getEntriesByName("first-contentful-paint").length === 1);
  assert.match(await text(page, "#members"), /Waiting for the node/);
  await shot(page, "before-data");
  await Promise.all(held.map((route) => route.continue()));
});

test_("rounds move while one looks", async (t, open) => {
  const page = await open();
  await loaded(page);
  const before = Number((await text(page, "#seq")).replaceAll(",", ""));
  await page.waitForFunction((before) => Number(document.getElementById("seq").textContent.replaceAll(",", "")) >= before + 3, before);
  assert.equal(await page.locator("#stages li.now").count(), 1);
  await page.waitForSelector("#chart svg rect");
  assert.equal(await page.locator("#members tbody tr").count(), 4);
  await page.waitForFunction(() => document.querySelectorAll("#members .vote.in").length >= 12);
  assert.match(await text(page, "#facts"), /Members live4 of 4/);
  assert.equal(await page.locator("#peers tbody tr").count(), 3);
  const newest = Number((await text(page, "#ledgers tbody a")).replaceAll(",", ""));
  assert.ok(newest >= before + 2, `${newest}`);
});

test_("a key, an input, its status, its output and the proof, and whatever is in it stays text", async (t, open) => {
  const page = await open();
  await loaded(page);
  await join(page);
  assert.match(await text(page, "#public-key"), /^[0-9a-f]{64}$/);
  await say(page, HOSTILE);
  await first(page, ".proven").waitFor();
  assert.match(await first(page, ".marks").textContent(), /^accepted in ledger [\d,]+, [\d.]+ m?sproven by [34] of 4 membersOpen ledger/);
  assert.equal(await first(page, "pre.output").textContent(), HOSTILE);

  await say(page, "fail");
  await first(page, ".tag.bad").waitFor();
  assert.match(await first(page).textContent(), /contract failed, as members signed.*exit code 3/);
  await page.fill("#input", "what is there?");
  await page.click("#ask");
  await first(page, "pre.output").waitFor();
  assert.match(await first(page).textContent(), /this node's word alone/);

  // The same input in the ledger that it is in.
  await page.locator("#talk > li", { hasText: "img src" }).getByRole("button", { name: /Open ledger/ }).click();
  await page.waitForSelector("#verdict");
  assert.match(await text(page, "#ledger-body"), /<img src=x onerror/);
  const hits = await page.evaluate(() => [globalThis.hit, document.querySelectorAll("main img, dialog img, main script, dialog script").length]);
  assert.deepEqual(hits, [undefined, 0]);
  await page.keyboard.press("Escape");
  await page.click("#log summary");
  await page.waitForSelector("#log-text pre, #log-text p");
  await serious(page, "with a conversation");
  await shot(page, "console-1280-light");
});

test_("a ledger's certificate is verified here, and what was tampered with is not", async (t, open) => {
  let change = null;
  const page = await open({}, { prepare: (page) => page.route(/\/v1\/ledgers\/\d+$/, async (route) => {
    const response = await route.fetch(), ledger = await response.json();
    if (ledger.seq) await change?.(ledger);
    await route.fulfill({ response, json: ledger });
  }) });
  await loaded(page);
  await join(page);
  await say(page, "to be looked at");
  await first(page, ".proven").waitFor();
  const seq = (await first(page, ".tag").first().textContent()).match(/ledger ([\d,]+)/)[1].replaceAll(",", "");
  const verdict = async () => {
    await page.evaluate((seq) => (location.hash = `ledger/${seq}`), seq);
    const found = await (await page.waitForSelector("#verdict")).textContent();
    await page.click("#ledger-close");
    await page.waitForFunction(() => !document.getElementById("ledger").open);
    return found;
  };
  const mine = (ledger) => ledger.seq === Number(seq);
  const turn = (hex, at) => hex.slice(0, at) + (hex[at] === "0" ? "1" : "0") + hex.slice(at + 1);
  // The result is told by the next ledger, which must be there.
  await page.waitForFunction((seq) => Number(document.querySelector("#ledgers tbody a").textContent.replaceAll(",", "")) > seq, Number(seq));
  assert.match(await verdict(), /^VerifiedChecked in this browser: [34] of 4 members signed it/);
  const lies = {
    "a signature": (ledger) => (ledger.certificate.signatures[0].sig = turn(ledger.certificate.signatures[0].sig, 3)),
    "too few signatures": (ledger) => ledger.certificate.signatures.splice(0, 2),
    "one signer twice": (ledger) => ledger.certificate.signatures.fill(ledger.certificate.signatures[0]),
    "another attempt": (ledger) => (ledger.certificate.attempt += 1),
    "the header": (ledger) => (ledger.header_bytes = turn(ledger.header_bytes, 150)),
    "the members": (ledger) => (ledger.unl = ledger.unl.slice(1)),
    "an input": (ledger) => mine(ledger) && (ledger.body.inputs[0].payload = turn(ledger.body.inputs[0].payload, 1)),
    "no inputs": (ledger) => mine(ledger) && (ledger.body.inputs = []),
    "an output": (ledger) => mine(ledger) && (ledger.outputs[0].bytes = turn(ledger.outputs[0].bytes, 1)),
    "the next ledger": (ledger) => mine(ledger) || (ledger.header_bytes = turn(ledger.header_bytes, 500)),
    "another ledger": async (ledger) => Object.assign(ledger, await (await fetch(`${network.pages[0]}/v1/ledgers/1`)).json()),
  };
  for (const [what, lie] of Object.entries(lies)) {
    change = lie;
    assert.match(await verdict(), /^Not verified/, what);
  }
  change = lies["a signature"];
  await page.evaluate((seq) => (location.hash = `ledger/${seq}`), seq);
  await page.waitForSelector("#verdict.bad");
  await page.screenshot({ path: `${SHOTS}/ledger-tampered.png` });
});

test_("everything can be done with the keyboard alone", async (t, open) => {
  const page = await open();
  await loaded(page);
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName);
  const tab = async (to, most = 60) => {
    for (let at = 0; at < most && (await focused()) !== to; at += 1) await page.keyboard.press("Tab");
    assert.equal(await focused(), to);
  };
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "skip");
  await tab("theme");
  await page.keyboard.press("Enter");
  assert.equal(await page.getAttribute("html", "data-theme"), "dark");
  await tab("make-key");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.id === "connect");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.id === "input");
  await page.keyboard.type("typed");
  await page.keyboard.press("Enter");
  await first(page, ".proven").waitFor();
  await page.waitForFunction(() => document.activeElement.id === "input");
  await tab("talk");
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "link");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#verdict.ok");
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => !document.getElementById("ledger").open);
  assert.equal(await focused(), "link", "the focus is where it was");
  await page.reload();
  assert.equal(await page.getAttribute("html", "data-theme"), "dark", "it is remembered");
});

test_("it fits every width, in light and dark, and axe finds nothing serious", async (t, open) => {
  for (const [width, colorScheme] of [[1280, "light"], [1280, "dark"], [768, "light"], [768, "dark"], [360, "light"], [360, "dark"]]) {
    const page = await open({ viewport: { width, height: 800 }, colorScheme, reducedMotion: "reduce" });
    await loaded(page);
    await page.waitForSelector("#chart svg rect");
    await page.click("#make-key");
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${width} px: nothing sticks out`);
    await serious(page, `${width} px, ${colorScheme}`);
    await shot(page, `page-${width}-${colorScheme}`);
    await page.click("#ledgers tbody tr:nth-child(4) a");
    await page.waitForSelector("#verdict.ok");
    assert.ok(await page.evaluate(() => document.getElementById("ledger").scrollWidth <= document.getElementById("ledger").clientWidth), `${width} px: nor in a ledger`);
    await serious(page, `a ledger, ${width} px, ${colorScheme}`);
    await page.screenshot({ path: `${SHOTS}/ledger-${width}-${colorScheme}.png` });
  }
});

test_("over plain http from another host it says what is missing, and shows the rest", async (t, open) => {
  const origin = network.pages[0].replace("127.0.0.1", ELSEWHERE);
  const page = await open({}, { origin });
  await loaded(page);
  assert.equal(await page.evaluate(() => isSecureContext), false);
  assert.match(await text(page, "#no-crypto"), /https, or on localhost/);
  await page.click("#ledgers tbody tr:nth-child(4) a");
  assert.match(await (await page.waitForSelector("#verdict")).textContent(), /^Not checked/);
  await page.screenshot({ path: `${SHOTS}/not-secure.png` });
});

test_("an answer that is nonsense is said, and breaks nothing", async (t, open) => {
  const page = await open({}, { prepare: async (page) => {
    await page.route("**/v1/ledgers?*", (route) => route.fulfill({ json: { ledgers: [null, { seq: "1" }, { seq: 3, inputs: "<b>", run: "<i>x</i>", agreed: true }], tip: 3 } }));
    await page.route("**/v1/rounds", (route) => route.fulfill({ json: { rounds: [{}, { seq: 1, run: { status: "<u>" } }] } }));
  } });
  await loaded(page);
  assert.equal(await page.locator("#ledgers tbody tr").count(), 1);
  assert.equal(await page.locator("main b, main i:not(.legend i), main u").count(), 0);
  await page.fill("#find-ledger", "999999999");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#ledger-body .error");
  assert.match(await text(page, "#ledger-body"), /There is no ledger 999999999 here/);
  page.problems = page.problems.filter((problem) => !problem.includes("404"));
});

test_("the client's examples hold in the browser as well", async (t, open) => {
  const page = await open({}, { prepare: async (page) => {
    await page.route("**/page/test/vectors.js", (route) => route.fulfill({ path: root("clients/js/test/vectors.js"), contentType: "text/javascript" }));
    await page.route("**/page/test/golden/*", (route) => route.fulfill({ path: root(`tests/golden/signed/${new URL(route.request().url()).pathname.split("/").pop()}.json`) }));
  } });
  const results = await page.evaluate(async () => {
    const { tests } = await import("/page/test/vectors.js");
    const read = async (name) => (await fetch(`/page/test/golden/${name}`)).json();
    return Promise.all(tests(read).map(async ([name, run]) => [name, await run().then(() => "ok", (error) => error.message)]));
  });
  assert.ok(results.length >= 7);
  for (const [name, result] of results) assert.equal(result, "ok", name);
});

test_("a node that goes away is said, and what was known stays", async (t, open) => {
  const alone = await start(1);
  t.after(alone.stop);
  const page = await open({}, { origin: alone.pages[0] });
  await loaded(page);
  await page.waitForSelector("#link.is-ok");
  assert.match(await text(page, "#peers"), /The only member needs no peers/);
  await shot(page, "one-node");
  await alone.stop();
  await page.waitForSelector("#link.is-bad");
  assert.match(await text(page, "#link"), /no answer from the node/);
  assert.ok(await page.locator("#ledgers tbody tr").count());
  page.problems = page.problems.filter((problem) => !/ERR_|Failed to load/.test(problem));
});

test_("seven nodes fit as well", async (t, open) => {
  const seven = await start(7);
  t.after(seven.stop);
  for (const [width, colorScheme] of [[1280, "light"], [360, "dark"]]) {
    const page = await open({ viewport: { width, height: 800 }, colorScheme }, { origin: seven.pages[0] });
    await loaded(page);
    await page.waitForFunction(() => document.querySelectorAll("#members .vote.in").length >= 21);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${width} px`);
    await shot(page, `seven-nodes-${width}-${colorScheme}`);
  }
});

test_("results that differ are a banner that says in what, and the console says that the network stands", async (t, open) => {
  const split = await start(2);
  t.after(split.stop);
  const page = await open({}, { origin: split.pages[0] });
  await loaded(page);
  await join(page);
  await say(page, "before");
  await first(page, ".proven").waitFor();
  await say(page, "differ");
  await page.waitForSelector("#alerts .banner.bad");
  await page.waitForFunction(() => /state\/differs/.test(document.getElementById("alerts").textContent));
  const banner = await text(page, "#alerts");
  assert.match(banner, /Halted: the nodes' results differ/);
  assert.match(banner, /results of ledger \d+ are split/);
  assert.equal(await page.locator("#alerts .banner:not(.bad)").count(), 0, "all of it is severe");
  await page.waitForFunction(() => /halted: .*nothing is lost/.test(document.getElementById("talk").textContent));
  await serious(page, "split");
  await shot(page, "split-1280-light");
  for (const [width, colorScheme] of [[1280, "dark"], [360, "light"]]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 900 });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${width} px: nothing sticks out`);
    await shot(page, `split-${width}-${colorScheme}`);
  }
  const { divergence } = await (await fetch(`${split.pages[0]}/v1/divergence`)).json();
  assert.equal(divergence.length, 1);
});

test_("over https the console speaks wss, an output becomes final, and what is settled is listed", async (t, open) => {
  const node = await startSettling();
  t.after(node.stop);
  assert.match(node.page, /^https:/);
  const page = await open({ ignoreHTTPSErrors: true }, { origin: node.page });
  await loaded(page);
  await join(page);
  assert.match(await text(page, "#session"), /connected to wss:/);
  await say(page, "to be settled");
  await first(page, ".waits").waitFor();
  assert.match(await first(page).textContent(), /not final until it is settled/);
  await shot(page, "not-final");
  await first(page, ".settled").waitFor();
  assert.match(await first(page, ".settled").textContent(), /^final: settled in [0-9a-f]{8}…$/);
  assert.equal(await first(page, ".waits").count(), 0);
  const row = page.locator("#settlements tbody tr").first();
  await row.waitFor();
  assert.match(await row.textContent(), /^[\d,]+( to [\d,]+)?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[0-9a-f]{8}…$/);
  assert.match(await text(page, "#settlement"), /Busreachable/);
  await serious(page, "settled");
  for (const [width, colorScheme] of [[1280, "light"], [1280, "dark"], [360, "light"]]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 900 });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${width} px: nothing sticks out`);
    await shot(page, `settled-${width}-${colorScheme}`);
  }
  await row.getByRole("button").click();
  await page.waitForSelector("#verdict.ok");
});
