// The built site in a real browser: every page in light, in dark and 390 pixels wide, every slider moved by a key.
//
//     npm install --prefix /somewhere playwright-core axe-core
//     NODE_PATH=/somewhere/node_modules node tools/site/browse.js docs/_build/html [PATTERN ...]
//
// Chromium comes from the system (`CHROMIUM` names another one). With patterns, only pages whose name one fits are looked at.
// A line for each fault, exit code 1 if there is any: messages of the console, requests that leave the site, pages wider
// than the screen, what axe calls serious or critical, a slider that has no name, or whose picture or words do not follow
// its key. `VIEWS=phone` looks in one way alone.
"use strict";
const fs = require("fs"), http = require("http"), path = require("path");
const { chromium } = require("playwright-core");
const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const KINDS = { html: "text/html", js: "text/javascript", css: "text/css", svg: "image/svg+xml", png: "image/png",
  jpg: "image/jpeg", json: "application/json", woff2: "font/woff2", woff: "font/woff" };
const VIEWS = {
  light: { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: "light", hasTouch: true },
};

const [root, ...patterns] = process.argv.slice(2);

function serve(folder) {
  const server = http.createServer((request, response) => {
    const name = path.join(folder, decodeURIComponent(request.url.split(/[?#]/)[0]));
    fs.readFile(name, (error, bytes) => {
      response.writeHead(error ? 404 : 200, { "content-type": KINDS[name.split(".").pop()] || "application/octet-stream" });
      response.end(error ? "" : bytes);
    });
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}

function pagesOf(folder, below = "") {
  return fs.readdirSync(path.join(folder, below), { withFileTypes: true }).flatMap((entry) => {
    const name = path.posix.join(below, entry.name);
    if (entry.isDirectory()) return entry.name.startsWith("_") ? [] : pagesOf(folder, name);
    return name.endsWith(".html") ? [name] : [];
  }).sort();
}

// What axe finds, a line for each rule with the first element that breaks it.
async function askAxe(page) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.filter((v) => ["serious", "critical"].includes(v.impact))
    .map((v) => `axe ${v.impact} ${v.id}, ${v.nodes.length} times: ${v.nodes[0].html.slice(0, 120)}`);
}

// Each slider by its arrow key, as somebody without a mouse: the picture is another one, and so are its words.
async function moveSliders(page) {
  const faults = [], sliders = await page.locator("figure.nbslider input[type=range]").all();
  for (const [k, slider] of sliders.entries()) {
    const figure = slider.locator("xpath=ancestor::figure[1]");
    const seen = () => figure.evaluate((f) => {
      const shown = [...f.querySelectorAll("img")].find((o) => getComputedStyle(o).display !== "none");
      return { src: shown.src.slice(-200) + shown.src.length, alt: shown.alt };
    });
    const name = await slider.evaluate((o) => o.getAttribute("aria-label") || o.labels?.[0]?.textContent || "");
    const ends = await slider.evaluate((o) => [o.value === o.max, o.value === o.min]);
    const before = await seen();
    await slider.focus();
    await page.keyboard.press(ends[0] ? "ArrowLeft" : "ArrowRight");
    const after = await seen();
    if (!name.trim()) faults.push(`slider ${k} has no name`);
    if (before.src === after.src) faults.push(`slider ${k}, ${name}: a key leaves the picture as it is`);
    if (before.alt === after.alt) faults.push(`slider ${k}, ${name}: a key leaves the words as they are: ${after.alt}`);
  }
  return { faults, sliders: sliders.length };
}

async function look(page, name, view, address) {
  const faults = [];
  const heard = (message) => ["error", "warning"].includes(message.type()) && faults.push(`console: ${message.text().slice(0, 200)}`);
  const failed = (error) => faults.push(`error: ${String(error).slice(0, 200)}`);
  const asked = (request) => !/^(data|blob):/.test(request.url()) && !request.url().startsWith(address) && faults.push(`asks ${request.url()}`);
  const answered = (response) => response.status() >= 400 && faults.push(`${response.status()}: ${response.url()}`);
  const all = { console: heard, pageerror: failed, request: asked, response: answered };
  for (const [event, listener] of Object.entries(all)) page.on(event, listener);
  await page.goto(address + name, { waitUntil: "load" });
  const [wide, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  if (wide > screen) faults.push(`${wide} pixels wide on a screen of ${screen}`);
  faults.push(...await askAxe(page));
  const moved = view === "dark" ? { faults: [], sliders: 0 } : await moveSliders(page);
  for (const [event, listener] of Object.entries(all)) page.off(event, listener);
  return { faults: [...faults, ...moved.faults], sliders: moved.sliders };
}

async function main() {
  const server = await serve(root), address = `http://127.0.0.1:${server.address().port}/`;
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
  const pages = pagesOf(root).filter((name) => !patterns.length || patterns.some((o) => new RegExp(o).test(name)));
  const views = Object.entries(VIEWS).filter(([name]) => (process.env.VIEWS || name).split(",").includes(name));
  let faults = 0, sliders = 0;
  for (const [view, options] of views) {
    const page = await (await browser.newContext(options)).newPage();
    page.setDefaultTimeout(300000);  // a busy machine is no fault
    for (const name of pages) {
      const found = await look(page, name, view, address);
      for (const fault of found.faults) console.log(`${name} (${view}): ${fault}`);
      faults += found.faults.length, sliders += found.sliders;
    }
  }
  await browser.close();
  server.close();
  console.log(`${pages.length} pages in ${views.length} views, ${sliders} sliders moved: ${faults} faults`);
  process.exit(faults ? 1 : 0);
}

main();
