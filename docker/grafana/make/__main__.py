"""Write the dashboards: `python docker/grafana/make DIRECTORY` (docker/grafana/dashboards, when none is given).

The JSON is committed, so that Grafana needs no Python; a test holds the two together.
"""

import json
import sys
from pathlib import Path

import decisions
import model
import serving
import tail


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "dashboards"
    folder.mkdir(parents=True, exist_ok=True)
    for made in (serving.made(), decisions.made(), tail.made(), model.made()):
        path = folder / f"{made['uid']}.json"
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {len(made['panels'])} panels")


if __name__ == "__main__":
    main()
