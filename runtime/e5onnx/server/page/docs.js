"use strict";
// Lists the operations of the server's OpenAPI document.

function make(name, text) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  return node;
}

function describe(path, method, operation, schemas) {
  const title = make("dt"), body = make("dd", operation.summary);
  title.append(make("code", `${method.toUpperCase()} ${path}`));
  const schema = operation.requestBody?.content["application/json"].schema;
  if (schema) {
    const request = make("details");
    const named = (_, value) => (value?.$ref ? schemas[value.$ref.split("/").pop()] : value);
    request.append(make("summary", "Request"), make("pre", JSON.stringify(schema, named, 1)));
    body.append(request);
  }
  return [title, body];
}

async function show() {
  const { paths, components } = await (await fetch("openapi.json")).json();
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, operation]) => describe(path, method, operation, components.schemas)));
  document.getElementById("operations").append(...operations);
}

show().catch(() => document.getElementById("operations").replaceWith(make("p", "The OpenAPI document could not be loaded.")));
