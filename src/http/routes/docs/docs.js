// Makes the list of routes out of the document. Text goes in as text, never as markup.
"use strict";

const make = (name, text, kind) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
};

const table = (heads, rows) => {
  const all = make("table");
  const head = all.createTHead().insertRow();
  for (const text of heads) {
    const cell = make("th", text);
    cell.scope = "col";
    head.append(cell);
  }
  const body = all.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((text, at) => line.insertCell().append(at ? text : make("code", text)));
  }
  return all;
};

const kindOf = (schema) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.oneOf) return schema.oneOf.map(kindOf).filter((kind) => kind !== "null").join(" or ");
  return [schema.type].flat().filter((kind) => kind && kind !== "null").join(" or ") || "any";
};

const operation = (spec, path, method, said) => {
  const route = make("details");
  const summary = make("summary");
  summary.append(make("span", method.toUpperCase(), "method " + method), make("span", path, "path"));
  summary.append(make("span", said.summary ?? "", "what"));
  const section = make("section");
  if (said.description) section.append(make("p", said.description));
  if (said.parameters?.length) {
    section.append(table(["Parameter", "In", "Kind", "What"], said.parameters.map((one) =>
      [one.name, one.in + (one.required ? ", required" : ""), kindOf(one.schema), one.description ?? ""])));
  }
  const body = said.requestBody?.content?.["application/json"]?.schema;
  const schema = body?.$ref ? spec.components?.schemas?.[body.$ref.split("/").pop()] : body;
  if (schema?.properties) {
    section.append(table(["Field of the body", "Kind", "What"], Object.entries(schema.properties).map(([name, one]) =>
      [name + (schema.required?.includes(name) ? "" : "?"), kindOf(one), one.description ?? ""])));
  }
  section.append(table(["Status", "What"], Object.entries(said.responses ?? {}).map(([status, one]) =>
    [status, one.description ?? ""])));
  route.append(summary, section);
  return route;
};

const show = async () => {
  const routes = document.getElementById("routes");
  try {
    const spec = await (await fetch("/v1/openapi.json")).json();
    const byArea = new Map();
    for (const [path, methods] of Object.entries(spec.paths)) {
      for (const [method, said] of Object.entries(methods)) {
        const area = said.tags?.[0] ?? "others";
        if (!byArea.has(area)) byArea.set(area, []);
        byArea.get(area).push(operation(spec, path, method, said));
      }
    }
    routes.replaceChildren();
    for (const [area, all] of byArea) routes.append(make("h2", area), ...all);
    document.getElementById("about").prepend(spec.info.title + " " + spec.info.version + ". ");
  } catch (error) {
    routes.textContent = "The document cannot be read: " + error;
  }
};

show();
