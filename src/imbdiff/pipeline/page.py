"""From a run folder to what its page is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import RunConfig, to_dict
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.methods import get_method
from imbdiff.pipeline.folder import RunFolder
from imbdiff.reporting.content import ReportData
from imbdiff.runtime.files import read_json
from imbdiff.runtime.log import read_jsonl


def report_data(
    folder: RunFolder, source: str, config: RunConfig, command: str, prepared: Prepared, synthetic: ImageSet | None
) -> ReportData:
    """Everything that is there; what is missing is left out, and the page says so."""
    metrics = optional(folder / "metrics.json")
    c = prepared.stats.num_classes
    return ReportData(
        title=f"{Path(source).name}: {config.method}",
        command=command,
        method=config.method,
        source=source,
        stats=prepared.stats,
        groups=prepared.groups,
        environment=optional(folder / "environment.json") or {},
        config=to_dict(config),
        warnings=prepared.warnings,
        manifest=prepared.manifest,
        drawn=() if synthetic is None else tuple(np.bincount(synthetic.labels, minlength=c).tolist()),
        train=prepared.train,
        synthetic=synthetic,
        nearest=metrics.get("nearest") if metrics else None,
        log=read_jsonl(folder / "log.jsonl"),
        metrics=metrics,
        classifier=optional(folder / "classifier" / "results.json"),
        timings={k: v["seconds"] for k, v in folder.stages().items()},
        run=str(folder.path),
        protocol=protocol(config, metrics),
    )


def protocol(config: RunConfig, metrics: dict[str, Any] | None) -> dict[str, str]:
    """What the numbers depend on, in words."""
    method, options = get_method(config.method), config.sample
    omega = method.omega if options.omega is None else options.omega
    rows = {
        "Method": f"{config.method}: {method.idea}. {method.source}",
        "Generator": f"{config.train.images:,} images seen, trained on the training split alone",
        "Sampler": f"{options.sampler}, {options.steps} steps, guidance {omega:g} (0 = none)",
    }
    if metrics is not None:
        judge = metrics.get("judge")
        rows["Judge"] = (
            f"{judge['name']}, trained on {judge['trained_on']:,} images before the tail was cut; "
            f"accuracy on the test images {judge['accuracy']:.3f}"
            if judge
            else "none that has seen balanced data: a fixed random network, for ranking only"
        )
    return rows


def optional(path: Path) -> dict[str, Any] | None:
    """A JSON file that may not be there yet."""
    return read_json(path) if path.exists() else None
