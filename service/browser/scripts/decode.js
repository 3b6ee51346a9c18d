// The bytes of an image file to the pixels that the model takes. The browser decodes; service/contract/images does it there.

import {fit} from "./pixels.js";

const MOST_PIXELS = 50_000_000;
const MOST_SIDE = 8192;  // of a canvas: what is beyond a browser's own limit it draws as nothing, without an error

function refusal(status, title, detail) { return Object.assign(new Error(detail), {status, title}); }

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
  const part = (left, top, wide, high) => {
    Object.assign(canvas, {width: wide, height: high});  // which empties it too
    draw.drawImage(bitmap, -left, -top);
    return draw.getImageData(0, 0, wide, high, {colorSpace: "srgb"}).data;
  };
  const read = (left, top, wide, high) => {
    if (wide <= MOST_SIDE && high <= MOST_SIDE) return part(left, top, wide, high);
    const all = new Uint8ClampedArray(4 * wide * high);
    for (let y = 0; y < high; y += MOST_SIDE)
      for (let x = 0; x < wide; x += MOST_SIDE) {
        const across = Math.min(MOST_SIDE, wide - x), down = Math.min(MOST_SIDE, high - y);
        const pixels = part(left + x, top + y, across, down);
        for (let row = 0; row < down; row++)
          all.set(pixels.subarray(4 * row * across, 4 * (row + 1) * across), 4 * ((y + row) * wide + x));
      }
    return all;
  };
  return {width, height, read, close: () => bitmap.close()};
}

/** The pixels that the model takes, and the upright size of the upload. Throws errors with `status` and `title`. */
export async function loaded(blob, input) {
  const picture = await decoded(blob);
  try { return {pixels: fit(picture, input), width_px: picture.width, height_px: picture.height}; }
  finally { picture.close(); }
}
