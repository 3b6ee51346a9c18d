// A picture to the pixels that the model takes, bit for bit as service/contract/images/fitting.py makes them: Pillow's
// resize of 8-bit channels (libImaging/Resample.c) in two passes, with weights of 22 bits, and alpha laid on white.

const BITS = 22, HALF = 1 << (BITS - 1);
const sinc = x => x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
const FILTERS = {
  bilinear: [1, x => { x = Math.abs(x); return x < 1 ? 1 - x : 0; }],
  bicubic: [2, x => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  }],
  lanczos: [3, x => x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0],
};

/** [left, top, right, bottom] in pixels of what is seen of a picture of this size. */
export function box(width, height, target) {
  if (target.fit === "stretch") return [0, 0, width, height];
  const scale = Math.min(width / target.width_px, height / target.height_px) * target.crop_share;
  const wide = Math.min(target.width_px * scale, width), high = Math.min(target.height_px * scale, height);
  let left = (width - wide) / 2, top = (height - high) / 2;
  if (scale === 1) { left = Math.trunc(left); top = Math.trunc(top); }  // a crop alone must not blur by half a pixel
  return [left, top, left + wide, top + high];
}

/** For each of `out` pixels: the first of the `size` pixels that it is made from, how many, and their weights in `table`,
 * `most` for each; `end`: behind the last one that is used at all. */
function weights(size, from, to, out, [reach, filter]) {
  from = Math.fround(from); to = Math.fround(to);  // Pillow's box is one of floats
  const scale = Math.fround(to - from) / out, wide = Math.max(scale, 1), support = reach * wide;
  const first = new Int32Array(out), count = new Int32Array(out), most = Math.ceil(support) * 2 + 1;
  const table = new Int32Array(out * most);
  for (let i = 0; i < out; i++) {
    const centre = from + (i + 0.5) * scale;
    first[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    count[i] = Math.min(size, Math.trunc(centre + support + 0.5)) - first[i];
    const values = [];
    let sum = 0;
    for (let x = 0; x < count[i]; x++) {
      values.push(filter((x + first[i] - centre + 0.5) * (1 / wide)));
      sum += values[x];
    }
    values.forEach((value, x) => {
      const share = (sum === 0 ? value : value / sum) * (1 << BITS);
      table[i * most + x] = Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
  }
  return {first, count, table, most, end: first[out - 1] + count[out - 1]};
}

/**
 * Uint8Array [height_px, width_px, 3] of `target` from a picture {width, height, read(left, top, width, height)}, which
 * gives parts of it as RGBA with straight alpha; it is asked for strips, so that a large picture is never held whole.
 */
export function fit({width, height, read}, target) {
  const {width_px: wide, height_px: high} = target, filter = FILTERS[target.resampling];
  const [left, top, right, bottom] = box(width, height, target);
  const same = width === wide && height === high && target.crop_share === 1;
  const across = !same && (wide !== width || left !== 0 || right !== wide);
  const down = !same && (high !== height || top !== 0 || bottom !== high);
  const columns = across && weights(width, left, right, wide, filter);
  const lines = down && weights(height, top, bottom, high, filter);
  // From version 13 on, Pillow begins with the height where that shrinks by more pixels than twice the width does.
  if (across && down && height > high && height - high > 2 * (width - wide)) {
    const from = columns.first[0], until = columns.end, rows = lines.end - lines.first[0], strip = stripOf(rows);
    const middle = new Uint8ClampedArray(4 * (until - from) * high);
    for (let x = from; x < until; x += strip) {
      const count = Math.min(strip, until - x), values = premultiplied(read(x, lines.first[0], count, rows));
      const made = downRows(values, count, high, lines);
      for (let y = 0; y < high; y++)
        middle.set(made.subarray(4 * y * count, 4 * (y + 1) * count), 4 * (y * (until - from) + x - from));
    }
    return onWhite(acrossRows(middle, until - from, high, wide, columns));
  }
  const from = down ? lines.first[0] : 0, until = down ? lines.end : height, strip = stripOf(width);
  const begin = across ? columns.first[0] : 0, count = (across ? columns.end : width) - begin;
  let middle = new Uint8ClampedArray(4 * wide * (until - from));
  for (let y = from; y < until; y += strip) {
    const rows = Math.min(strip, until - y), values = premultiplied(read(begin, y, count, rows));
    middle.set(across ? acrossRows(values, count, rows, wide, columns) : values, 4 * wide * (y - from));
  }
  return onWhite(down ? downRows(middle, wide, high, lines) : middle);
}

const stripOf = length => Math.max(1, Math.floor(2 ** 20 / length));  // rows or columns: 4 MB

function premultiplied(values) {
  for (let i = 0; i < values.length; i += 4) {
    const alpha = values[i + 3];
    if (alpha === 255) continue;
    for (let c = i; c < i + 3; c++) {
      const product = values[c] * alpha + 128;
      values[c] = ((product >> 8) + product) >> 8;
    }
  }
  return values;
}

function acrossRows(values, width, rows, wide, {first, count, table, most}) {
  const made = new Uint8ClampedArray(4 * wide * rows);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < wide; x++) {
      let r = HALF, g = HALF, b = HALF, a = HALF, from = 4 * (y * width + first[x] - first[0]);
      for (let k = x * most, last = k + count[x]; k < last; k++, from += 4) {
        const weight = table[k];
        r += values[from] * weight; g += values[from + 1] * weight;
        b += values[from + 2] * weight; a += values[from + 3] * weight;
      }
      const at = 4 * (y * wide + x);
      made[at] = r >> BITS; made[at + 1] = g >> BITS; made[at + 2] = b >> BITS; made[at + 3] = a >> BITS;
    }
  }
  return made;
}

function downRows(values, wide, high, {first, count, table, most}) {
  const made = new Uint8ClampedArray(4 * wide * high), stride = 4 * wide;
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < stride; x++) {
      let sum = HALF, from = (first[y] - first[0]) * stride + x;
      for (let k = y * most, last = k + count[y]; k < last; k++, from += stride) sum += values[from] * table[k];
      made[y * stride + x] = sum >> BITS;
    }
  }
  return made;
}

function onWhite(values) {
  const pixels = new Uint8Array(values.length / 4 * 3);
  for (let from = 0, to = 0; from < values.length; from += 4, to += 3) {
    const alpha = values[from + 3], open = 255 - alpha;
    for (let c = 0; c < 3; c++) pixels[to + c] = Math.min(values[from + c], alpha) + open;
  }
  return pixels;
}
