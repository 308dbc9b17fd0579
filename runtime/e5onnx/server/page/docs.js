"use strict";
// Lists the operations of the server's OpenAPI document.

function make(name, text) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  return node;
}

function describe(path, method, operation) {
  const title = make("dt"), body = make("dd", operation.summary);
  title.append(make("code", `${method.toUpperCase()} ${path}`));
  const schema = operation.requestBody?.content["application/json"].schema;
  if (schema) {
    const request = make("details");
    request.append(make("summary", "Request"), make("pre", JSON.stringify(schema, null, 1)));
    body.append(request);
  }
  return [title, body];
}

async function show() {
  const { paths } = await (await fetch("openapi.json")).json();
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, operation]) => describe(path, method, operation)));
  document.getElementById("operations").append(...operations);
}

show().catch(() => document.getElementById("operations").replaceWith(make("p", "The document could not be loaded.")));
