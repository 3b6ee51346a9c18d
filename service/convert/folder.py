"""The folder of a converted graph: its files, what was measured, the lines that run it. It is no bundle."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.contract import folders
from service.contract.bundle import MANIFEST_FILE, Manifest
from service.contract.reasons import QUALITY
from service.convert.errors import ConvertError

BUNDLE_FILE = "bundle.json"  # the manifest of the bundle, in the shape of its newest format
RECORD_FILE = "conversion.json"


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, whole; where an error ends it, nothing is there."""
    try:
        with folders.appearing(out) as temporary:
            yield temporary
            if out.exists():  # rename would take the place of an empty folder
                raise already(out)
    except OSError as error:
        raise ConvertError(f"--out {out} cannot be written ({error.strerror}): name another folder") from error


def already(out: Path) -> ConvertError:
    """The refusal of an --out that is there."""
    return ConvertError(f"--out {out} exists already: choose another name, or remove it first")


def fill(folder: Path, source: Path, manifest: Manifest, record: Mapping[str, Any], readme: str) -> None:
    """Beside the graph: the manifest, card and golden examples of the bundle in `source`, the record, README.md."""
    for name in [*(["CARD.md"] if "CARD.md" in manifest.files else []), *(g.file for g in manifest.golden)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    write_json(folder / BUNDLE_FILE, manifest.model_dump(mode="json"))
    write_json(folder / RECORD_FILE, record)
    (folder / "README.md").write_text(readme, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """As the manifest of a bundle is written."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def readme(manifest: Manifest, said: str, package: str, imports: str, runs: str) -> str:
    """README.md: `said` is what was measured; `runs`, with `imports` of `package`, makes `answer` of `images`."""
    licence = manifest.evaluation.get("licence") or "not stated"
    less = f" `{manifest.heat_map.file}` of the bundle, the heat map, was left out." if manifest.heat_map else ""
    return f"""# {manifest.name} {manifest.version}, converted

{said}{less}

The graph takes `images`, uint8 [N, {manifest.input.height_px}, {manifest.input.width_px}, 3], RGB, any N, and gives \
`probabilities` [N, {len(manifest.classes)}] and [N] of each score, larger = more outlying. Classes and thresholds \
are in `{BUNDLE_FILE}`, what was measured in `{RECORD_FILE}`. This folder is no bundle: `tailguard serve` runs the \
{MANIFEST_FILE} that it came from. The service converts a picture's colour profile to sRGB; the lines below do not.

```python
# pip install {package} numpy pillow
import json
import sys

import numpy as np
{imports}
from PIL import Image, ImageOps

{picture(manifest)}
{runs}
{decision(manifest)}
```

Terms of the model: {licence}; of its data set: see `CARD.md`.
"""


def picture(manifest: Manifest) -> str:
    """Lines of Python from the path in sys.argv to `images` [1, H, W, 3]; they convert no colour profile."""
    shape = manifest.input
    lines = [
        "picture = ImageOps.exif_transpose(Image.open(sys.argv[1]))",
        "if picture.mode[0] in 'IF':",
        "    sys.exit('The picture has more than 8 bits a channel: save it with 8')",
        "if picture.has_transparency_data:  # it is laid on white",
        "    picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture.convert('RGBA'))",
        "picture = picture.convert('RGB')",
        f"wide, high, box = {shape.width_px}, {shape.height_px}, None",
    ]
    if shape.fit == "crop":
        lines += [
            f"part = {shape.crop_share!r} * min(picture.width / wide, picture.height / high)",
            "left, top = (picture.width - wide * part) / 2, (picture.height - high * part) / 2",
            "left, top = (int(left), int(top)) if part == 1 else (left, top)",
            "box = left, top, left + wide * part, top + high * part",
        ]
    how = f"Image.Resampling.{shape.resampling.upper()}"
    return "\n".join([*lines, f"images = np.asarray(picture.resize((wide, high), {how}, box=box))[None]"])


def decision(manifest: Manifest) -> str:
    """Lines of Python from `answer` to a class and accept or reject, as the bundle decides by itself."""
    limit = "limit = point['threshold']"
    if manifest.threshold_scope == "group":
        limit = "limit = point['class_thresholds'].get(best['name'], point['group_thresholds'][best['group']])"
    lines = [
        f"bundle = json.load(open('{BUNDLE_FILE}'))",
        "point = bundle['operating_points'][bundle['default_operating_point']]",
        "best = bundle['classes'][int(answer['probabilities'][0].argmax())]",
        limit,
        "rejected = not answer[bundle['deciding_score']][0] <= limit",
    ]
    if manifest.reasons:
        lines += [
            "least = bundle['reasons']['limits']  # of pixels: below one of them no answer is given",
            f"quality = dict(zip(('brightness', 'contrast', 'sharpness'), answer['{QUALITY}'][0].tolist()))",
            "rejected |= any(value < least[name] for name, value in quality.items())",
            "rejected |= min(picture.size) < least['side_px']",
        ]
    return "\n".join([*lines, "print(best['name'], 'reject' if rejected else 'accept')"])
