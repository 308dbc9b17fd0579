"use strict";
// Embeds a query and passages with this server and shows their cosines. Stores nothing and calls no other server.

const element = (id) => document.getElementById(id);
const STEPS = 8; // .heat-0 to .heat-7 in page.css

function headers() {
  const key = element("key").value;
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

async function embed(input, inputType) {
  const body = JSON.stringify({ input, input_type: inputType });
  const response = await fetch("v1/embeddings", { method: "POST", headers: headers(), body });
  const content = await response.json().catch(() => null); // a proxy may answer with something else
  if (!response.ok || !content) throw new Error(content?.error?.message ?? `The server answered ${response.status}.`);
  return { vectors: content.data.map((item) => item.embedding), truncated: content.truncated };
}

// The checkpoint: /v1/embeddings knows it by the names that the operator chose.
async function checkpoint() {
  const response = await fetch("info", { headers: headers() });
  return response.ok ? (await response.json()).model_id : "";
}

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

// E5's cosines lie between 0.7 and 1, so bars and colours start at the smallest one.
function scale(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return (value) => (high > low ? (value - low) / (high - low) : 1);
}

function showRanking(passages, scores) {
  const share = scale(scores);
  const order = scores.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);
  element("ranking").replaceChildren(...order.map((index) => {
    const item = make("li");
    const value = (0.08 + 0.92 * share(scores[index])).toFixed(3);
    item.append(
      make("span", scores[index].toFixed(4), { class: "score" }),
      " ",
      make("span", passages[index]),
      make("meter", undefined, { value, "aria-label": `cosine ${scores[index].toFixed(4)}` }),
    );
    return item;
  }));
}

function showHeat(texts, vectors) {
  const names = texts.map((_, index) => (index ? String(index) : "query"));
  const cosines = vectors.map((a) => vectors.map((b) => cosine(a, b)));
  const share = scale(cosines.flat());
  const head = make("tr");
  head.append(make("td"), ...names.map((name) => make("th", name, { scope: "col" })));
  const rows = cosines.map((row, index) => {
    const line = make("tr");
    const title = index ? `${index}. ${texts[index]}` : `query: ${texts[index]}`;
    line.append(make("th", title, { scope: "row", title: texts[index] }));
    line.append(...row.map((value) => {
      const step = Math.min(STEPS - 1, Math.floor(share(value) * STEPS));
      return make("td", value.toFixed(3), { class: `heat-${step}` });
    }));
    return line;
  });
  const caption = make("caption", "Cosines: the bluer, the more similar.");
  element("heat").replaceChildren(caption, head, ...rows);
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
let latest = 0; // number of the latest question: answers to earlier ones are not shown

async function rank() {
  const question = ++latest;
  const status = element("status");
  status.className = "";
  status.textContent = "…";
  const query = element("query").value;
  const passages = element("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);
  try {
    if (!passages.length) throw new Error("Write at least one passage.");
    const start = performance.now();
    const [asked, found, model] = await Promise.all([embed([query], "query"), embed(passages, "document"), checkpoint()]);
    if (question !== latest) return;
    const milliseconds = Math.round(performance.now() - start);
    showRanking(passages, found.vectors.map((vector) => cosine(asked.vectors[0], vector)));
    showHeat([query, ...passages], [...asked.vectors, ...found.vectors]);
    const cut = asked.truncated + found.truncated;
    status.textContent = `${count(passages.length, "passage")} in ${milliseconds} ms${cut ? `; ${count(cut, "text")} cut` : ""}`;
    element("model").textContent = model;
    element("results").hidden = false;
  } catch (error) {
    if (question !== latest) return;
    status.className = "error";
    status.textContent = error.message;
    element("results").hidden = true;
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
element("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) {
    event.preventDefault();
    element("form").requestSubmit();
  }
});
