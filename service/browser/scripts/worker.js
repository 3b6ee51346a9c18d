// The model at work, beside the page so that it does not freeze: decode → pixels → graph → answer. It is handed all
// files as bytes and fetches nothing but the scripts below.

import * as ort from "../runtime/ort.wasm.min.js";
import {answer} from "./decide.js";
import {loaded} from "./decode.js";
import {box} from "./pixels.js";

const MOST_THREADS = 4;
let model = null;  // {manifest, session, exemplars}

// ---- Pixels to a row of numbers ------------------------------------------------------------------------------------------

let running = Promise.resolve();  // the session runs one picture at a time

function run(pixels) {
  const {manifest: {input, scores, outputs}, session} = model;
  const images = new ort.Tensor("uint8", pixels, [1, input.height_px, input.width_px, 3]);
  const found = running.then(async () => {
    const given = await session.run({images}, outputs);
    return {
      probabilities: given.probabilities.data,
      scores: Object.fromEntries(Object.keys(scores).map(name => [name, given[name].data[0]])),
      quality: given.quality?.data, embedding: given.embedding?.data, heat_map: given.heat_map?.data,
    };
  });
  running = found.catch(() => {});
  return found;
}

/** As the service does when it loads a bundle: an error where an example is answered otherwise than at export. */
async function checkGolden(files, tell) {
  const {classes, golden, input, probability_tolerance: allowed} = model.manifest;
  const wrong = (file, what) => new Error(`The golden example ${file} ${what}: the model does not do here what it did at export.`);
  for (const [i, {file, label, probabilities, scores}] of golden.entries()) {
    tell(`Checking that it answers as when it was made: ${i + 1} of ${golden.length} examples …`);
    const {probabilities: found, scores: values} = await run((await loaded(files[file], input)).pixels);
    const off = Math.max(...found.map((p, i) => Math.abs(p - probabilities[i])));
    if (!(off <= allowed)) throw wrong(file, `has a probability that is off by ${off.toPrecision(3)}, allowed is ${allowed}`);
    const best = Math.max(...found), named = found[classes.findIndex(({name}) => name === label)];
    if (!(best - named <= allowed)) throw wrong(file, `is not taken for ${label}`);
    for (const [name, {value, tolerance}] of Object.entries(scores))
      if (!(Math.abs(values[name] - value) <= tolerance))
        throw wrong(file, `has ${name} ${values[name].toPrecision(6)}, not ${value.toPrecision(6)} within ${tolerance.toPrecision(3)}`);
  }
}

// ---- What the page asks for ----------------------------------------------------------------------------------------------

async function open({manifest, graph, wasm, vectors, files}, tell) {
  const started = performance.now(), here = new URL("../runtime/", import.meta.url).href;
  ort.env.wasm.wasmPaths = {mjs: here + "ort-wasm-simd-threaded.js"};
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  const session = await ort.InferenceSession.create(graph, {executionProviders: ["wasm"]});
  const exemplars = vectors && {...manifest.exemplars, vectors: new Float32Array(vectors)};
  model = {manifest, session, exemplars};
  const opened = performance.now();
  await checkGolden(files, tell);
  return {open_ms: opened - started, golden_ms: performance.now() - opened, threads: ort.env.wasm.numThreads};
}

async function classify({blob, asked}) {
  const started = performance.now(), {manifest, exemplars} = model;
  const {pixels, width_px, height_px} = await loaded(blob, manifest.input);
  const decodedAt = performance.now(), row = {...await run(pixels), width_px, height_px};
  const inferredAt = performance.now(), found = answer(manifest, row, asked, exemplars);
  if (asked.map && row.heat_map) {
    const [left, top, right, bottom] = box(width_px, height_px, manifest.input), {width, height} = manifest.heat_map;
    const values = Array.from(row.heat_map, value => Number(value.toFixed(4)));
    found.map = {width, height, values, box: {left, top, width: right - left, height: bottom - top}};
  }
  found.stage_times = {decode_ms: decodedAt - started, inference_ms: inferredAt - decodedAt, total_ms: performance.now() - started};
  return found;
}

onmessage = async ({data: {id, what, given}}) => {
  const tell = stage => postMessage({id, stage});
  try { postMessage({id, found: await {open, classify}[what](given, tell)}); }
  catch (error) { postMessage({id, problem: {status: error.status || 500, title: error.title || "The model failed", detail: error.message}}); }
};
