"""The file of costs, JSON or CSV.

    {"wrong_accept": 10, "refusal": 1, "unknown_accept": 20, "unknown_share": 0.05,
     "classes": {"mushroom": {"wrong_accept": 100, "missed": 50}}}

    class,wrong_accept,refusal,unknown_accept,missed,unknown_share
    *,10,1,20,,0.05
    mushroom,100,,,50,

A wrong accept is an image of a class accepted as another; an unknown accept one of no class that is accepted; a refusal
costs the same whatever was refused. What a class says holds for the images predicted as it, `missed` for those that
truly are of it and are accepted as another: of the two costs of such an image the larger one counts.
"""

import csv
import difflib
import json
import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.once import named_once
from service.errors import InvalidParameter, SettingsError

ALL = "*"
Cost = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]  # the squares of sums stay finite
SHARE = "unknown_share"
COLUMNS = ("wrong_accept", "refusal", "unknown_accept", "missed", SHARE)


class ClassCosts(BaseModel):
    """Of one class, in place of those of all; None: as for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wrong_accept: Cost | None = None
    refusal: Cost | None = None
    unknown_accept: Cost | None = None
    missed: Cost | None = None


class Costs(BaseModel):
    """In any one unit. `unknown_share`: of images of no class among all that come."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wrong_accept: Cost
    refusal: Cost
    unknown_accept: Cost | None = None  # None: as a wrong accept
    unknown_share: float = Field(ge=0, lt=1)
    classes: dict[str, ClassCosts] = {}

    def of(self, name: str) -> ClassCosts:
        """What holds for images predicted as a class; `missed` stays None where it is not given."""
        own = self.classes.get(name, ClassCosts())
        unknown = self.wrong_accept if self.unknown_accept is None else self.unknown_accept
        return ClassCosts(
            wrong_accept=self.wrong_accept if own.wrong_accept is None else own.wrong_accept,
            refusal=self.refusal if own.refusal is None else own.refusal,
            unknown_accept=unknown if own.unknown_accept is None else own.unknown_accept,
            missed=own.missed,
        )

    def in_words(self) -> str:
        """For the description of an operating point."""
        unknown = self.of(ALL).unknown_accept
        own = f"; own costs for {', '.join(self.classes)}" if self.classes else ""
        return (
            f"a wrong accept costs {self.wrong_accept:g}, a refusal {self.refusal:g}, an accepted unknown {unknown:g}, "
            f"{self.unknown_share:.3g} of the images are unknown{own}"
        )


def read(path: Path, classes: list[str]) -> Costs:
    """The costs of a file. SettingsError that names the value and the remedy."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            content = _of_csv(path, text)
        else:
            content = json.loads(text, object_pairs_hook=named_once)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise SettingsError(
            f"--costs {path} cannot be read ({error}): give a file as service/README.md shows"
        ) from error
    except InvalidParameter as error:
        raise SettingsError(f"--costs {path}: {error}") from error
    try:
        found = Costs.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise SettingsError(f"--costs {path}: {where} is {str(first['input'])[:80]}: {first['msg']}") from error
    found = found.model_copy(update={"classes": _as_written(found.classes, classes, path)})
    for name in found.classes:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)[0]
            raise SettingsError(f"--costs {path} names the class {name!r}, which the bundle has not: is it {near!r}?")
    if not found.wrong_accept and not found.refusal and not found.of(ALL).unknown_accept and not found.classes:
        raise SettingsError(f"--costs {path}: nothing costs anything, so every threshold is as good as another")
    return found


def _as_written(given: dict[str, ClassCosts], classes: list[str], path: Path) -> dict[str, ClassCosts]:
    """By the names of the bundle: a file from macOS may have an accent as a character of its own."""
    written = {unicodedata.normalize("NFC", name): name for name in classes}
    found: dict[str, ClassCosts] = {}
    for name, costs in given.items():
        own = name if name in classes else written.get(unicodedata.normalize("NFC", name), name)
        if own in found:
            raise SettingsError(f"--costs {path} names the class {own!r} twice: one line for each")
        found[own] = costs
    return found


def _of_csv(path: Path, text: str) -> dict[str, Any]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    known = {"class", *COLUMNS}
    if reader.fieldnames is None or not {"class", "wrong_accept", "refusal", SHARE} <= set(reader.fieldnames) <= known:
        raise SettingsError(
            f"--costs {path} has the columns {reader.fieldnames}: give class,wrong_accept,refusal,{SHARE} and perhaps "
            "unknown_accept,missed"
        )
    if len(set(reader.fieldnames)) < len(reader.fieldnames):
        raise SettingsError(f"--costs {path} has a column twice: {', '.join(reader.fieldnames)}")
    content: dict[str, Any] = {"classes": {}}
    seen: set[str] = set()
    for row in reader:
        if None in row:  # 0,05 for 0.05: the share would be 0, and nothing would say so
            raise SettingsError(
                f"--costs {path}: line {reader.line_num} has more values than columns: write 0.05, not 0,05"
            )
        values = {name: row[name].strip() for name in COLUMNS if (row.get(name) or "").strip()}
        if (name := str(row["class"]).strip()) in seen:
            raise SettingsError(f"--costs {path} names the class {name!r} twice: one line for each")
        seen.add(name)
        if name == ALL:
            content |= values
        else:
            content["classes"][name] = values
    return content
