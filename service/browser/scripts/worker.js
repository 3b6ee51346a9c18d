// The model at work, beside the page so that it does not freeze: decode → pixels → graph → answer. It is handed all
// files as bytes and fetches nothing but the scripts below.

import * as ort from "../runtime/ort.wasm.min.js";
import {answer} from "./decide.js";
import {box, fit} from "./pixels.js";

const MOST_PIXELS = 50_000_000, MOST_THREADS = 4;
let model = null;  // {manifest, session, exemplars}

function refusal(status, title, detail) { return Object.assign(new Error(detail), {status, title}); }

// ---- Bytes to pixels ---------------------------------------------------------------------------------------------------

/** The browser's decoder turns a picture upright and brings it to sRGB; parts of it are read as RGBA. */
async function decoded(blob) {
  let bitmap;
  try { bitmap = await createImageBitmap(blob, {imageOrientation: "from-image"}); }
  catch { throw refusal(415, "Unreadable image", "This browser cannot read the file: save it as a PNG or JPEG."); }
  const {width, height} = bitmap;
  if (width * height > MOST_PIXELS) {
    bitmap.close();
    throw refusal(422, "Invalid image", `The image has ${width} x ${height} pixels, the limit is ${MOST_PIXELS}: make it smaller.`);
  }
  const canvas = new OffscreenCanvas(1, 1);
  const draw = canvas.getContext("2d", {colorSpace: "srgb", willReadFrequently: true});
  const read = (left, top, wide, high) => {
    Object.assign(canvas, {width: wide, height: high});  // which empties it too
    draw.drawImage(bitmap, -left, -top);
    return draw.getImageData(0, 0, wide, high, {colorSpace: "srgb"}).data;
  };
  return {width, height, read, close: () => bitmap.close()};
}

async function loaded(blob, input) {
  const picture = await decoded(blob);
  try { return {pixels: fit(picture, input), width_px: picture.width, height_px: picture.height}; }
  finally { picture.close(); }
}

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
async function checkGolden(files) {
  const {classes, golden, input, probability_tolerance: allowed} = model.manifest;
  const wrong = (file, what) => new Error(`The golden example ${file} ${what}: the model does not do here what it did at export.`);
  for (const {file, label, probabilities, scores} of golden) {
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

async function open({manifest, graph, wasm, vectors, files}) {
  const started = performance.now(), here = new URL("../runtime/", import.meta.url).href;
  ort.env.wasm.wasmPaths = {mjs: here + "ort-wasm-simd-threaded.js"};
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  const session = await ort.InferenceSession.create(graph, {executionProviders: ["wasm"]});
  const exemplars = vectors && {...manifest.exemplars, vectors: new Float32Array(vectors)};
  model = {manifest, session, exemplars};
  const opened = performance.now();
  await checkGolden(files);
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
  try { postMessage({id, found: await {open, classify}[what](given)}); }
  catch (error) { postMessage({id, problem: {status: error.status || 500, title: error.title || "The model failed", detail: error.message}}); }
};
