// The runner of ONNX Runtime Web: its WebAssembly build in headless Chromium. A server on the
// loopback address serves the page and its files. The environment variable CHROMIUM is the path of
// the browser.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
const folders = {
  "/": here,
  "/case/": process.argv[2],
  "/ort/": join(here, "node_modules/onnxruntime-web/dist"),
};
const types = { ".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm" };

const server = createServer(async (request, response) => {
  const path = normalize(new URL(request.url, "http://127.0.0.1").pathname);
  const prefix = Object.keys(folders).findLast((p) => path.startsWith(p));
  try {
    const bytes = await readFile(join(folders[prefix], path.slice(prefix.length)));
    response.writeHead(200, {
      "Content-Type": types[extname(path)] ?? "application/octet-stream",
      // These headers permit shared memory between threads.
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
    });
    response.end(bytes);
  } catch {
    response.writeHead(404);
    response.end();
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/page.html`);
  const answer = await page.evaluate(() => window.answer());
  answer.version += ` (Chromium ${browser.version()}, ${answer.threads} thread${answer.threads > 1 ? "s" : ""})`;
  process.stdout.write(JSON.stringify(answer));
} finally {
  await browser.close();
  server.close();
}
