// The search of a built site without a browser: node ask.js SITE < questions.json > pages.json
// Its own scripts run here, in the order of its page of results; only the parts of a page that they touch are made up.
"use strict";
const fs = require("fs"), path = require("path"), vm = require("vm");

const site = process.argv[2];
const page = fs.readFileSync(path.join(site, "search.html"), "utf8");
const scripts = [...page.matchAll(/<script[^>]*src="([^"?]+)/g)].map((found) => found[1]);
const wanted = scripts.filter((name) => /searchtools|language_data|searchindex/.test(name));

const nothing = { lastChild: null, querySelectorAll: () => [], addEventListener() {}, dataset: {} };
const world = vm.createContext({
  document: { ...nothing, getElementById: () => null, readyState: "loading" },
  localStorage: { setItem() {} }, SPHINX_HIGHLIGHT_ENABLED: false, URLSearchParams, console,
  _: (text) => text, _ready() {},
});
world.window = world;
for (const name of wanted) vm.runInContext(fs.readFileSync(path.join(site, name), "utf8"), world);
vm.runInContext("ask = (text) => Search._performSearch(...Search._parseQuery(text))", world);

const questions = JSON.parse(fs.readFileSync(0, "utf8"));
const answers = questions.map((text) => world.ask(text).reverse().map((result) => result[0]));
console.log(JSON.stringify(answers.map((pages) => [...new Set(pages)])));
