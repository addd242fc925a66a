"""A result file from a finished run: arms, verdict, distances, stage times, and the command that repeats it.

imbdiff run digits --preset demo --out runs/demo
python benchmarks/run_summary.py demo runs/demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from imbdiff.config import to_dict
from imbdiff.pipeline.folder import repeat_command
from imbdiff.pipeline.run import open_run
from results_file import short_number, write_result


def summary(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(result, configuration) of a finished run."""
    opened, prepared = open_run(run)
    classifier = json.loads((run / "classifier" / "results.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text()) if (run / "metrics.json").exists() else {"numbers": []}
    marks = opened.folder.stages()

    def rounded(block: dict[str, Any]) -> dict[str, Any]:
        return {"all": round(block["accuracy"], 4)} | {k: round(v, 4) for k, v in block["groups"].items()}

    distances = [
        short_number(row) for row in metrics["numbers"] if row.get("value") is not None and not row["ranking_only"]
    ]
    result = {
        "counts": list(prepared.stats.counts),
        "groups": prepared.groups.rule,
        "test_images": len(prepared.test),
        "synthetic_images": marks["sample"]["images"],
        "seconds": {name: mark["seconds"] for name, mark in marks.items()},
        "arms": [
            {"name": a["name"], "prior": a["prior"], "mean": rounded(a["mean"]), "sd": rounded(a["sd"])}
            for a in classifier["arms"]
        ],
        "control": classifier["control"],
        "verdict": classifier["verdict"]["sentence"],
        "judge": metrics.get("judge"),
        "distances": distances,
    }
    name = Path(opened.source).name
    config = {"repeat": repeat_command(name, "RUN", opened.config), **to_dict(opened.config)}
    return result, config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic")
    parser.add_argument("run", type=Path)
    parser.add_argument("--notes", default="One split, one generator: differences between generators are not in it.")
    given = parser.parse_args()
    result, config = summary(given.run)
    for path in write_result(given.topic, result, config=config, notes=given.notes):
        print(path)


if __name__ == "__main__":
    main()
