// What index.html asks in place of a service: the model runs in this browser, in a worker. Loaded before the page's own
// script; the page then asks `tailguardBackend.fetch` for what it would ask a server for.

"use strict";
globalThis.tailguardBackend = (() => {
  const own = document.currentScript, base = new URL("../", own.src), MB = 1e6;
  const checked = Boolean(globalThis.crypto?.subtle);  // browsers offer it over https and on localhost
  const waiting = new Map();  // questions to the worker, by number
  const stop = new AbortController();  // of what is still loading when something is wrong
  let worker = null, asked = 0, started = null, described = null, stored = {};

  document.documentElement.classList.add("alone");

  const problem = (status, title, detail) => Object.assign(new Error(detail), {status, title});
  const json = (value, status = 200) => new Response(JSON.stringify(value), {status});
  const say = text => { document.getElementById("model").textContent = text; };

  async function hexDigest(bytes) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
  }

  // The bytes of one file of this folder, which must have the digest that was written down when it was made.
  async function file(path, sha256, onBytes = () => {}) {
    let response;
    try { response = await fetch(new URL(`${path}?v=${sha256.slice(0, 16)}`, base), {signal: stop.signal}); }
    catch { throw problem(503, "Not loaded", `${path} cannot be fetched: is the connection there? Load the page again.`); }
    if (!response.ok) throw problem(503, "Not loaded", `${path} is missing from the page's folder (HTTP ${response.status}): make the folder again.`);
    const parts = [], reader = response.body.getReader();
    try {
      for (let {done, value} = await reader.read(); !done; {done, value} = await reader.read()) { parts.push(value); onBytes(value.length); }
    } catch { throw problem(503, "Not loaded", `${path} broke off: load the page again.`); }
    const bytes = await new Blob(parts).arrayBuffer();
    if (checked && await hexDigest(bytes) !== sha256)
      throw problem(503, "Not loaded", `${path} is not the file that belongs to this page: load the page again, or make its folder again.`);
    return bytes;
  }

  function tell(what, given, move = []) {
    return new Promise((resolve, reject) => {
      waiting.set(++asked, {resolve, reject});
      worker.postMessage({id: asked, what, given}, move);
    });
  }

  function startWorker() {
    worker = new Worker(new URL("worker.js", own.src), {type: "module"});
    worker.onmessage = ({data: {id, found, stage, problem: said}}) => {
      if (stage) return say(stage);
      const {resolve, reject} = waiting.get(id);
      waiting.delete(id);
      if (said) reject(problem(said.status, said.title, said.detail)); else resolve(found);
    };
    worker.onerror = event => {
      event.preventDefault();
      for (const {reject} of waiting.values())
        reject(problem(503, "Not loaded", `The model cannot start in this browser (${event.message || "its scripts cannot be loaded"}): use a current one.`));
      waiting.clear();
    };
  }

  async function start() {
    if (location.protocol === "file:")
      throw problem(503, "Opened as a file", "Browsers let a page read its model only from a web server. In this folder run: python3 -m http.server, then open http://localhost:8000");
    const began = performance.now();
    say("Loading the model …");
    described = JSON.parse(new TextDecoder().decode(await file("model/model.json", own.dataset.model)));
    const {manifest, files} = described, total = Object.values(files).reduce((sum, {bytes}) => sum + bytes, 0);
    let here = 0;
    const progress = bytes => { here += bytes; if (!stop.signal.aborted) say(`Loading the model: ${(here / MB).toFixed(1)} of ${(total / MB).toFixed(1)} MB …`); };
    const found = await Promise.all(Object.entries(files).map(async ([path, {sha256}]) => [path, await file(path, sha256, progress)]));
    const loadedAt = performance.now();
    stored = Object.fromEntries(found);
    say("Starting the model …");
    startWorker();
    const graph = await new Blob(manifest.graph_files.map(path => stored[path])).arrayBuffer();
    const golden = Object.fromEntries(manifest.golden.map(example => [example.file, new Blob([stored[example.file]])]));
    const vectors = manifest.exemplars && stored[manifest.exemplars.file], wasm = stored[manifest.wasm_file];
    for (const path of [...manifest.graph_files, manifest.wasm_file]) delete stored[path];  // the worker has them
    const times = await tell("open", {manifest, graph, wasm, vectors, files: golden}, [graph, wasm, ...(vectors ? [vectors] : [])]);
    describe(total, loadedAt - began, performance.now() - loadedAt, times.threads);
  }

  // Under the model's name: what runs where, and what it took.
  function describe(bytes, loadMs, startMs, threads) {
    const {manifest} = described, about = document.getElementById("about"), count = manifest.golden.length;
    const seconds = ms => (ms / 1000).toFixed(1) + " s";
    const words = `Runs in this browser alone: photos stay on this device. ${(bytes / MB).toFixed(1)} MB loaded in ${seconds(loadMs)}, `
      + `started in ${seconds(startMs)}${threads > 1 ? ` with ${threads} threads` : ""}; ${count} examples answered as when it was made. `
      + (checked ? "" : "Over plain http the browser cannot check the files' digests. ");
    const links = manifest.links.map(([text, path]) => Object.assign(document.createElement("a"), {href: path, textContent: text}));
    about.replaceChildren(words, ...links.flatMap(link => [link, " "]));
    about.hidden = false;
  }

  // ---- What the page asks for ----

  async function image(path) {
    if (!(path in stored)) throw problem(404, "Not found", `${path} is not in this page's folder.`);
    return new Blob([stored[path]]);
  }

  function thumbnail(place) {
    const {thumbnails_file: path, ends} = described.manifest.exemplars;
    return new Blob([stored[path].slice(place ? ends[place - 1] : 0, ends[place])], {type: "image/jpeg"});
  }

  async function classify(query, form) {
    const {summary} = described, number = name => Number(query.get(name)) || 0;
    const wanted = {
      operating_point: query.get("operating_point") || summary.operating_point,
      thresholds: query.get("thresholds") || summary.threshold_scope,
      set: number("set"), neighbours: number("neighbours"), map: query.get("map") === "true",
      top_k: number("top_k") || undefined,
    };
    return tell("classify", {blob: form.get("file"), asked: wanted});
  }

  async function answer(path, options) {
    started ??= start().catch(error => { stop.abort(); say("The model is not loaded."); throw error; });
    await started;
    const [route, query] = path.split("?");
    if (route === "model") return json(described.summary);
    if (route === "classify") return json(await classify(new URLSearchParams(query), options.body));
    if (route.startsWith("model/exemplars/")) return new Response(thumbnail(Number(route.split("/")[2])));
    return new Response(await image(decodeURIComponent(route)));
  }

  return {
    where: "in this browser",
    feedback: false,
    fetch: (path, options = {}) => answer(path, options).catch(({status = 500, title = "The page failed", message}) =>
      json({title, detail: message}, status)),
  };
})();
