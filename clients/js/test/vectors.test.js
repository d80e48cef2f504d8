import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { tests } from "./vectors.js";

const golden = new URL("../../../tests/golden/signed/", import.meta.url);
const read = async (name) => JSON.parse(await readFile(new URL(`${name}.json`, golden), "utf8"));

for (const [name, run] of tests(read)) test(name, run);
