"""One self-contained HTML file per table: grids, pictures, conventions, provenance; nothing is fetched."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

from training.runs.files import Json
from training.tables.cells import Runs, Section, imbalance
from training.tables.grids import Table
from training.tables.series import Picture
from training.tables.text import shown_cell

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
thead th { white-space: normal; vertical-align: bottom; border-bottom: 2px solid #666; min-width: 4.2rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
.published { background: #f3f3f3; color: #444; } figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; } figcaption, li { font-size: .9rem; } code { font-size: .85em; }
"""


def html(
    table: Table, sections: Sequence[Section], notes: Sequence[str], pictures: Sequence[Picture], runs: Runs
) -> str:
    title = f"{table.title}: {runs.dataset.upper()}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>Shows {escape(table.shows)}.</p>"]
    for section in sections:
        parts += [f"<h2>{escape(section.title)}</h2>", grid(section)]
    parts += [
        "<p>Grey columns: published figures.</p>",
        "<h2>Read this before comparing</h2>",
        _list(map(prose, notes)),
    ]
    if pictures:
        parts += ["<h2>Pictures</h2>", *map(figure, pictures)]
    parts += ["<h2>Where the numbers come from</h2>", provenance(runs.all())]
    body = "\n".join(parts)
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def grid(section: Section) -> str:
    """A table that scrolls by itself on a narrow screen; the labels stay in sight."""
    shade = [' class="published"' if c.origin == "published" else "" for c in section.columns]
    head = "".join(f'<th scope="col"{s}>{escape(c.label)}</th>' for c, s in zip(section.columns, shade, strict=True))
    lines = []
    for line in section.lines:
        cells = []
        for column, s in zip(section.columns, shade, strict=True):
            text = escape(shown_cell(section, line, column))
            cells.append(f"<td{s}>{f'<strong>{text}</strong>' if section.is_best(line, column) else text}</td>")
        mark = "*" if line.note else ""
        lines.append(f'<tr><th scope="row">{escape(line.label)}{mark}</th>{"".join(cells)}</tr>')
    top = f'<thead><tr><th scope="col">{escape(section.first)}</th>{head}</tr></thead>'
    return f'<div class="wide"><table>{top}<tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"


def figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def provenance(results: Sequence[Json]) -> str:
    """Row, seed, commit and command of every run."""
    if not results:
        return "<p>No run is there yet.</p>"
    lines = []
    for run in results:
        made = run.get("provenance") or {}
        training = made.get("training") or {}
        commits = dict.fromkeys(str(p["commit"]) for p in (training, made) if "commit" in p)
        commands = dict.fromkeys(str(p["command"]) for p in (training, made) if "command" in p)
        row = f"{run['method']}, imbalance {imbalance(run):g}, seed {run['seed']}"
        code = "".join(f"<br><code>{escape(c)}</code>" for c in commands)
        lines.append(escape(f"{row}: commit {', '.join(commits) or 'unknown'}") + code)
    return _list(lines)


def prose(note: str) -> str:
    """The little markdown that notes have: `code` and an escaped star."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(note.replace("\\*", "*")))


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
