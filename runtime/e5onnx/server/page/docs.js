"use strict";
// Shows openapi.json with Redoc, in the colours of page.css. The code samples get the address under which this page was found.

const dark = matchMedia("(prefers-color-scheme: dark)");
const [text, quiet, line, page, tint, panel, accent, good, error] = dark.matches
  ? ["#e4e8ee", "#a3adba", "#3a4350", "#181c23", "#222833", "#101318", "#79b4f2", "#7fd1a0", "#ff8a80"]
  : ["#1a1f27", "#57606c", "#c9cfd8", "#ffffff", "#f1f3f6", "#262c36", "#1f5fa8", "#1d6b3c", "#b3261e"];
const response = (color, tabTextColor) => ({ color, backgroundColor: tint, tabTextColor });
const theme = {
  colors: {
    primary: { main: accent }, success: { main: good }, error: { main: error }, text: { primary: text, secondary: quiet },
    border: { dark: line, light: line }, gray: { 50: page, 100: tint }, http: { get: "#1d6b3c", post: "#1f5fa8" },
    responses: { success: response(good, "#7fd1a0"), error: response(error, "#ff8a80") },
  },
  schema: { nestedBackground: tint, linesColor: line, typeNameColor: quiet, typeTitleColor: quiet, requireLabelColor: error },
  typography: {
    fontFamily: "system-ui, sans-serif", fontSize: "15px", lineHeight: "1.55", headings: { fontFamily: "system-ui, sans-serif" },
    code: { color: text, backgroundColor: tint, fontFamily: "ui-monospace, monospace" }, links: { color: accent, visited: accent, hover: accent },
  },
  sidebar: { backgroundColor: tint, textColor: text, activeTextColor: accent },
  rightPanel: { backgroundColor: panel, textColor: "#e4e8ee" },
  codeBlock: { backgroundColor: "#0b0d11" },
};

async function show() {
  const samples = (await (await fetch("openapi.json")).text()).replaceAll("http://127.0.0.1:8080", new URL(".", location).href.slice(0, -1));
  const options = { theme, disableSearch: true, hideDownloadButton: true, sanitize: true, nativeScrollbars: true, jsonSamplesExpandLevel: 5 };
  const docs = document.getElementById("docs");
  // Code that is wider than its frame scrolls, so it has to be within reach of the keyboard.
  const reachable = () => docs.querySelectorAll("pre:not([tabindex])").forEach((code) => { code.tabIndex = 0; });
  new MutationObserver(reachable).observe(docs, { childList: true, subtree: true });
  Redoc.init(JSON.parse(samples), options, docs);
}

dark.addEventListener("change", () => location.reload());
show().catch((error) => { document.getElementById("docs").textContent = `The documentation could not be loaded: ${error.message}`; });
