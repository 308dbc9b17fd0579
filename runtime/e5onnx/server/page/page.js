"use strict";
// Ranks passages and shows tokens with this server. Stores nothing, calls no other server, and shows texts as text only.

const EXAMPLE_QUERY = "how much protein should a female eat";
const EXAMPLE_PASSAGES = [
  "Most health agencies advise women aged 19 to 70 to eat about 46 grams of protein a day.",
  "Expectant mothers and women who train for a race need more protein.",
  "Lentils, eggs and plain yoghurt are cheap sources of protein.",
  "Vitamin C helps the body take up iron from plants.",
  "The summit of a mountain is its topmost point.",
  "A meeting of the heads of several governments is called a summit.",
  "Glaciers shape valleys as they slide downhill and carry rock with them.",
  "Climbers acclimatise for days before they go above 5,000 metres.",
  "A database index trades disk space for faster look-ups.",
  "Full-text search matches words; vector search matches meanings.",
  "A transaction makes several changes to a database, or none of them.",
  "Backups that were never restored should not be trusted.",
];
const element = (id) => document.getElementById(id);
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
let info = null; // what /info says, once it could be read

async function call(path, content) {
  const key = element("key").value;
  const headers = { ...(content && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { method: content ? "POST" : "GET", headers, body: content && JSON.stringify(content) });
  const reply = await response.json().catch(() => null); // a proxy may answer with something else
  if (!response.ok || !reply) {
    const message = reply?.error?.message ?? reply?.error ?? `The server answered ${response.status}.`;
    throw Object.assign(new Error(message), { code: reply?.error?.code });
  }
  return reply;
}

async function loadInfo() {
  info ??= await call("info");
  const { query, document: passage } = roles();
  const isE5 = query === "query: " && passage === "passage: ";
  document.body.classList.toggle("is-e5", isE5);
  element("low").textContent = isE5 ? "0.70 or less" : "0.00 or less";
  element("model").textContent = `${info.model_id} · ${info.dimension} dimensions · at most ${info.max_input_length} tokens`;
  if (!element("prompt").options.length) {
    const names = Object.entries(info.prompts).map(([name, prompt]) => make("option", `${name} (“${prompt}”)`, { value: prompt }));
    element("prompt").append(...names, make("option", "none", { value: "" }));
  }
  return { low: isE5 ? 0.7 : 0 };
}

const roles = () => ({ query: info.prompts.query, document: info.prompts.document ?? info.prompts.passage });

function cosine(a, b) {
  let product = 0, first = 0, second = 0;
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    first += a[i] * a[i];
    second += b[i] * b[i];
  }
  return product / Math.max(Math.sqrt(first * second), 1e-12);
}

function make(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// A length or colour by a number from 0 to 1, which page.css uses as var(--share).
function withShare(node, share) {
  node.style.setProperty("--share", Math.min(Math.max(share, 0), 1));
  return node;
}

function showRanking(passages, scores) {
  const order = scores.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);
  element("ranking").replaceChildren(...order.map((index) => {
    const item = make("li"), track = make("div", undefined, { class: "track", "aria-hidden": "true" });
    track.append(withShare(make("div", undefined, { class: "bar" }), scores[index]));
    item.append(make("span", scores[index].toFixed(3), { class: "score" }), " ", make("span", passages[index]), track);
    return item;
  }));
}

function showHeat(texts, vectors, low) {
  const head = make("tr"), body = make("tbody"), top = make("thead");
  head.append(make("th", "Text", { scope: "col" }));
  head.append(...texts.map((_, index) => make("th", index ? String(index) : "query", { scope: "col" })));
  top.append(head);
  body.append(...texts.map((text, index) => {
    const row = make("tr");
    row.append(make("th", `${index || "query"}: ${text}`, { scope: "row", title: text }));
    row.append(...vectors.map((other) => {
      const value = cosine(vectors[index], other);
      return withShare(make("td", value.toFixed(3)), (value - low) / (1 - low));
    }));
    return row;
  }));
  element("heat").replaceChildren(top, body);
}

async function rank() {
  const query = element("query").value;
  const passages = element("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!passages.length) throw new Error("Write at least one passage.");
  const start = performance.now();
  const [{ low }, asked, found] = await Promise.all([
    loadInfo(),
    call("v1/embeddings", { input: [query], input_type: "query" }),
    call("v1/embeddings", { input: passages, input_type: "document" }),
  ]);
  const milliseconds = Math.round(performance.now() - start);
  const vectors = [...asked.data, ...found.data].map((item) => item.embedding);
  const cut = asked.truncated + found.truncated;
  return () => {
    showRanking(passages, vectors.slice(1).map((vector) => cosine(vectors[0], vector)));
    showHeat([query, ...passages], vectors, low);
    return `${count(passages.length, "passage")} in ${milliseconds} ms${cut ? `; ${count(cut, "text")} cut` : ""}`;
  };
}

// The number of tokens if a text is too long, otherwise null: /tokenize itself stops at the model's maximum.
async function tooLong(input) {
  try {
    await call("v1/embeddings", { input, input_type: "raw", truncate: "error" });
    return null;
  } catch (error) {
    if (error.code !== "context_length_exceeded") throw error;
    return /has (\d+) tokens/.exec(error.message)?.[1] ?? "more";
  }
}

async function tokenize() {
  await loadInfo();
  const prompt = element("prompt").value, text = prompt + element("text").value;
  const [[tokens], total] = await Promise.all([call("tokenize", { inputs: text }), tooLong(text)]);
  const [characters, before, beginning] = [text, prompt, prompt.trimEnd()].map((each) => Array.from(each)); // code points, as the server counts
  return () => {
    element("tokens").replaceChildren(...tokens.map((token) => {
      const kind = token.special ? "special" : token.stop <= beginning.length ? "prompt" : "";
      const item = make("li", undefined, { class: kind });
      item.append(make("span", token.text), make("small", token.id));
      return item;
    }));
    const end = Math.max(0, ...tokens.map((token) => token.stop ?? 0)), rest = characters.slice(end);
    element("cut").hidden = total === null;
    element("rest").textContent = rest.length > 600 ? `${rest.slice(0, 600).join("")}… (${rest.length} characters)` : rest.join("");
    return total === null
      ? `${count(tokens.length, "token")} of at most ${info.max_input_length}. Nothing is cut.`
      : `${total} tokens, and the model takes ${info.max_input_length}: the text is cut after ${Math.max(0, end - before.length)} of ${characters.length - before.length} characters.`;
  };
}

// Runs `work` when a form is sent and shows what it found, unless the form was sent again meanwhile.
function answer(form, status, results, work) {
  let latest = 0;
  element(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = ++latest;
    element(status).className = "";
    element(status).textContent = "…";
    const show = await work().catch((error) => error);
    if (question !== latest) return;
    const failed = show instanceof Error;
    element(status).className = failed ? "error" : "";
    element(status).textContent = failed ? show.message : show();
    if (results) element(results).hidden = failed;
  });
  element(form).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    element(form).requestSubmit();
  });
}

async function start() {
  const { components } = await call("openapi.json");
  element("access").hidden = !components.securitySchemes;
  if (!components.securitySchemes) await loadInfo();
}

answer("search", "search-status", "results", rank);
answer("tokenize", "tokens-status", "pieces", tokenize);
element("example").addEventListener("click", () => {
  element("query").value = EXAMPLE_QUERY;
  element("passages").value = EXAMPLE_PASSAGES.join("\n");
  element("search").requestSubmit();
});
answer("unlock", "access-status", null, async () => {
  await loadInfo();
  return () => "The key is right.";
});
start().catch((error) => {
  element("search-status").className = "error";
  element("search-status").textContent = error.message;
});
