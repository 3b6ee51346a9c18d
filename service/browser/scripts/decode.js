// The bytes of an image file to the pixels that the model takes. The browser decodes; service/contract/images does it there.

import {fit} from "./pixels.js";

const MOST_PIXELS = 50_000_000;
const MOST_SIDE = 8192;  // of a canvas: what is beyond a browser's own limit it draws as nothing, without an error

function refusal(status, title, detail) { return Object.assign(new Error(detail), {status, title}); }

const latin = new TextDecoder("latin1");
// Browsers decode more than the service reads, icons for one.
const KNOWN = /^(\xff\xd8\xff|.PNG\r\n\x1a\n|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|RIFF....WEBP|....ftyp)/s;

/** The orientation in the EXIF block `view`; 0 where it names none. */
function ofExif(view) {
  try {
    const start = latin.decode(view).startsWith("Exif\0\0") ? 6 : 0, little = view.getUint16(start) === 0x4949;
    const entries = start + view.getUint32(start + 4, little);
    for (let i = 0, at = entries + 2; i < view.getUint16(entries, little); i++, at += 12)
      if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  } catch { /* cut short */ }
  return 0;
}

/** The orientation that a WebP file names, in EXIF or else in XMP; 1 of any other file. */
async function ofWebp(blob) {
  if (!/^RIFF....WEBP/s.test(latin.decode(await blob.slice(0, 12).arrayBuffer()))) return 1;
  const all = await blob.arrayBuffer(), view = new DataView(all), found = {};
  for (let at = 12, size; at + 8 <= all.byteLength; at += 8 + size + size % 2) {
    size = view.getUint32(at + 4, true);
    found[latin.decode(new DataView(all, at, 4))] ??= new DataView(all, at + 8, Math.min(size, all.byteLength - at - 8));
  }
  const xmp = found["XMP "] && latin.decode(found["XMP "]).match(/tiff:Orientation(?:=["']|>)\s*([1-8])/);
  return (found.EXIF && ofExif(found.EXIF)) || (xmp && Number(xmp[1])) || 1;
}

/** A PNG without the mark of an animation, whose first frame need not be the picture that the service reads; any other
 * file as it is. */
async function still(blob, head) {
  if (head.slice(1, 4) !== "PNG") return blob;
  const view = new DataView(await blob.arrayBuffer());
  for (let at = 8; at + 12 <= view.byteLength; at += 12 + view.getUint32(at)) {
    const kind = latin.decode(new DataView(view.buffer, at + 4, 4));
    if (kind === "acTL") return new Blob([blob.slice(0, at), blob.slice(at + 12 + view.getUint32(at))]);
    if (kind === "IDAT") break;
  }
  return blob;
}

/** The browser's decoder turns a picture upright and brings it to sRGB; parts of it are read as RGBA. */
async function decoded(blob) {
  const head = latin.decode(await blob.slice(0, 12).arrayBuffer());
  let bitmap;
  if (!KNOWN.test(head)) throw refusal(415, "Unreadable image", "The file is of no kind that is read here: save it as a PNG or JPEG.");
  try { bitmap = await createImageBitmap(await still(blob, head), {imageOrientation: "from-image"}); }
  catch { throw refusal(415, "Unreadable image", "This browser cannot read the file: save it as a PNG or JPEG."); }
  const {width, height} = bitmap, orientation = await ofWebp(blob);
  if (orientation > 1 && orientation <= 8) {  // Chromium leaves those as they are, and JPEG, PNG and AVIF not
    bitmap.close();
    throw refusal(415, "Unreadable image", "The WebP file is to be turned, as its metadata says, which browsers do not: save it as a PNG or JPEG.");
  }
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
