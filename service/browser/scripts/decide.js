// Numbers of the graph to a decision and an answer, as service/contract/decision.py and service/web/answers.py make them.

const LEAST_DOUBT = 1e-4, ROUNDING = 1e-6;

const doubt = best => Math.log(Math.max(1 - best, LEAST_DOUBT)) - Math.log(Math.max(best, LEAST_DOUBT));
const standard = (part, score) => (score - part.at) / part.scale;
const finite = value => Number.isFinite(value) ? value : null;
const rounded = (value, decimals) => Number(value.toFixed(decimals));

/** The place of the largest value, the first of equals; what is not a number is larger than all, as for NumPy. */
export function argmax(values) {
  let best = 0;
  for (let i = 0; i < values.length && !Number.isNaN(values[best]); i++)
    if (values[i] > values[best] || Number.isNaN(values[i])) best = i;
  return best;
}

/** The places of the k largest values, the largest first; what is not a number last. */
export function largest(values, k) {
  const rank = i => Number.isNaN(values[i]) ? -Infinity : values[i];
  const order = (a, b) => rank(b) - rank(a) || Number.isNaN(values[a]) - Number.isNaN(values[b]) || a - b;
  return Array.from(values.keys()).sort(order).slice(0, k);
}

// ---- Reference: p-values and thresholds from the calibration scores --------------------------------------------------

function pValue(reference, score) {
  const {scores, p_values: p} = reference;
  if (Number.isNaN(score)) return p[p.length - 1];
  let low = 0, high = scores.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] < score) low = middle + 1; else high = middle;
  }
  return p[low];
}

/** The largest score accepted at a level; Infinity where there are too few images for it. */
function threshold(reference, level) {
  const refused = Number((1 - level).toFixed(9));
  const place = reference.p_values.findIndex((p, k) => k > 0 && p <= refused);
  return place < 0 ? Infinity : reference.scores[place - 1];
}

// ---- The decision ----------------------------------------------------------------------------------------------------

const referenceOf = ({calibration: {references}}, scope, group) =>
  references[scope === "group" && Object.hasOwn(references, group) ? group : "all"];

function limitOf(point, scope, predicted) {
  if (scope === "global") return point.threshold;
  if (Object.hasOwn(point.class_thresholds, predicted.name)) return point.class_thresholds[predicted.name];
  return point.group_thresholds[predicted.group];
}

function brokenLimit(limits, [brightness, contrast, sharpness], sidePx) {
  if (sidePx < limits.side_px) return "small";
  if (brightness < limits.brightness) return "dark";
  if (contrast < limits.contrast) return "blank";
  return sharpness < limits.sharpness ? "blurred" : null;
}

// `limit`: at least that of the default operating point; what only a stricter one refuses is unsure.
function reasonName(reasons, score, limit, unknown, best) {
  if (score <= limit) return "unsure";
  const one = standard(reasons.unknown, unknown), other = standard(reasons.unsure, doubt(best));
  return one <= limit && one < other && !Number.isNaN(score) ? "unsure" : "unknown";
}

/**
 * The verdict on one image: `row` has probabilities [C], scores by name and, where the model tells refusals apart,
 * quality [3]; `sidePx` is the shorter side of the upload.
 */
export function decideRow(manifest, row, operatingPoint, scope, sidePx) {
  const {probabilities, scores, quality} = row, best = argmax(probabilities), predicted = manifest.classes[best];
  const score = scores[manifest.deciding_score], reference = referenceOf(manifest, scope, predicted.group);
  const limit = limitOf(manifest.operating_points[operatingPoint], scope, predicted), reasons = manifest.reasons;
  const verdict = {class_index: best, score, decision: score <= limit ? "accept" : "reject", threshold: limit,
                   operating_point: operatingPoint, scope, p_value: pValue(reference, score), reason: null, unfit: null};
  if (!reasons) return verdict;
  const unfit = quality ? brokenLimit(reasons.limits, quality, sidePx) : null;
  if (unfit) return {...verdict, decision: "reject", reason: "unfit", unfit, p_value: pValue(reference, Infinity)};
  if (verdict.decision === "accept") return verdict;
  const usual = limitOf(manifest.operating_points[manifest.default_operating_point], scope, predicted);
  const unknown = scores[reasons.unknown_score];
  return {...verdict, reason: reasonName(reasons, score, Math.max(limit, usual), unknown, probabilities[best])};
}

// ---- What is said beyond it ------------------------------------------------------------------------------------------

/** The classes of a conformal set at a level, the most probable first, and the groups with too few images for it. */
export function setOf(manifest, probabilities, level) {
  const limits = new Map(), best = argmax(probabilities), {references} = manifest.sets;
  for (const {group} of manifest.classes)
    if (!limits.has(group))
      limits.set(group, Object.hasOwn(references, group) ? threshold(references[group], level) : Infinity);
  const inside = manifest.classes.map(({group}, i) => i === best || !(1 - probabilities[i] > limits.get(group)));
  return {places: largest(probabilities, probabilities.length).filter(i => inside[i]),
          tooFew: [...limits.keys()].filter(group => limits.get(group) === Infinity)};
}

/** The deepest node above the classes that can be promised; null where none can. */
export function nodeOf({paths, levels}, probabilities) {
  for (const {depth, threshold: least} of [...levels].reverse()) {
    if (least === null) continue;
    const sums = new Map();
    paths.forEach((path, i) => {
      if (path.length < depth) return;
      const key = path.slice(0, depth).join("/");
      sums.set(key, (sums.get(key) || 0) + probabilities[i]);
    });
    const values = [...sums.values()], best = argmax(values);
    if (values[best] >= least - ROUNDING)
      return {path: [...sums.keys()][best].split("/"), depth, probability: Math.min(values[best], 1)};
  }
  return null;
}

/** The k exemplars nearest to an embedding [D]: their places and distances, 1 - cosine; none where it has no direction. */
export function nearest(exemplars, embedding, k) {
  const {vectors, class_index: classes} = exemplars, size = embedding.length, length = Math.hypot(...embedding);
  if (!(length > 0 && length < Infinity)) return [];
  const distances = classes.map((_, i) => {
    let product = 0;
    for (let d = 0; d < size; d++) product += vectors[i * size + d] * embedding[d];
    return Math.min(2, Math.max(0, 1 - product / length));
  });
  return distances.map((distance, place) => ({place, distance})).sort((a, b) => a.distance - b.distance).slice(0, k);
}

// ---- The answer, in the shape of POST /classify ----------------------------------------------------------------------

function taxonomyAnswer(taxonomy, node) {
  if (!node) return {node: null, path: [], depth: 0, probability: null, promise: null};
  const {path, depth, probability} = node;
  return {node: path[path.length - 1], path, depth, probability, promise: Number((1 - taxonomy.error).toFixed(9))};
}

/** `row` also has the upload's width_px and height_px; `asked`: operating_point, thresholds, set, neighbours. */
export function answer(manifest, row, asked, exemplars) {
  const {classes} = manifest, {probabilities, scores, width_px, height_px} = row;
  const verdict = decideRow(manifest, row, asked.operating_point, asked.thresholds, Math.min(width_px, height_px));
  const {class_index, threshold: limit, decision, p_value} = verdict, {name: label, group} = classes[class_index];
  const entry = i => ({label: classes[i].name, class_index: i, probability: finite(probabilities[i])});
  const found = {
    model: {name: manifest.name, version: manifest.version}, label, class_index, group,
    probability: finite(probabilities[class_index]),
    top_k: largest(probabilities, asked.top_k ?? Math.min(5, classes.length)).map(entry),
    scores: Object.fromEntries(Object.entries(scores).map(([name, value]) => [name, finite(value)])),
    deciding_score: {name: manifest.deciding_score, value: finite(verdict.score), threshold: limit,
                     scope: verdict.scope, operating_point: verdict.operating_point},
    p_value, decision, image: {width_px, height_px},
  };
  if (manifest.reasons) Object.assign(found, {reason: verdict.reason, unfit: verdict.unfit});
  if (asked.set && manifest.sets) {
    const {places, tooFew} = setOf(manifest, probabilities, asked.set);
    found.set = {level: asked.set, classes: places.map(entry), too_few: tooFew};
  }
  if (manifest.taxonomy) {
    const node = decision === "reject" && verdict.reason !== "unfit" ? nodeOf(manifest.taxonomy, probabilities) : null;
    found.taxonomy = decision === "reject" ? taxonomyAnswer(manifest.taxonomy, node) : null;
  }
  if (asked.neighbours && exemplars)
    found.neighbours = nearest(exemplars, row.embedding, asked.neighbours).map(({place, distance}) => ({
      label: classes[exemplars.class_index[place]].name, class_index: exemplars.class_index[place],
      distance: rounded(distance, 4), exemplar: place,
      thumbnail: exemplars.pictured[place] ? `model/exemplars/${place}` : null,
    }));
  return found;
}
