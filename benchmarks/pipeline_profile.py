"""Where the time of `imbdiff run` goes: every stage under a profiler, sorted by what the time was spent on.

    python benchmarks/pipeline_profile.py digits --preset demo
    python benchmarks/pipeline_profile.py digits --preset demo --set train.images=9000

Classifiers are trained in this process, one after the other, so that the profiler sees them. Shares are of the main
thread's time; a profiler makes Python look slower than it is.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path
from typing import Any

import yaml

import imbdiff.pipeline.recognising
import imbdiff.recognition.jobs
from harness import write_result
from imbdiff import preset
from imbdiff.config import override
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.run import STAGES, Run

#: what a function's own time counts as, by words in its file and name; the first that fits
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("waiting", ("acquire", "_thread.lock", "select.", "time.sleep", "waitpid")),
    ("hashing", ("_hashlib", "_sha", "hashlib")),
    ("PNG", ("PngImagePlugin", "ImagingEncoder", "ImagingDecoder", "zlib", "ImageFile")),
    ("files", ("posix", "_io.", "pathlib", "os.py", "shutil", "safetensors", "json")),
    ("imports", ("importlib", "marshal", "_imp", "builtins.exec", "builtins.compile")),
    ("tensors", ("torch._", "torch.", "TensorBase", "_C", "run_backward", "of 'torch", "_VariableFunctions")),
    ("numpy, scikit-learn", ("numpy", "sklearn", "scipy", "numpy.")),
    ("plots, pages", ("matplotlib", "jinja2")),
)  # fmt: skip


def kind_of(function: tuple[str, int, str]) -> str:
    file, _, name = function
    native = file == "~"
    text = name if native else f"{file}/{name}"
    for kind, words in KINDS:
        if any(word in text for word in words) and (native or kind not in ("tensors", "numpy, scikit-learn")):
            return kind
    return "Python: this package" if "imbdiff" in file else "Python: others"


def breakdown(profile: cProfile.Profile) -> dict[str, float]:
    """Share of the time by kind, largest first, and "seconds"."""
    seconds: dict[str, float] = {}
    for function, (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        kind = kind_of(function)
        seconds[kind] = seconds.get(kind, 0.0) + own
    total = sum(seconds.values())
    shares = {kind: round(value / total, 4) for kind, value in sorted(seconds.items(), key=lambda kv: -kv[1])}
    return {"seconds": round(total, 2), **shares}


def largest(profile: cProfile.Profile, n: int = 6) -> list[str]:
    """The functions of the most own time that are not tensor arithmetic."""
    rows = [
        (own, f"{Path(function[0]).name}:{function[2]} {own:.2f} s, {calls} calls")
        for function, (_, calls, own, _, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        if kind_of(function) not in ("tensors", "waiting")
    ]
    return [text for _, text in sorted(rows, reverse=True)[:n]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    values = {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in given.set)}
    config = override(preset(given.preset), {**values, "device": "cpu"})
    imbdiff.recognition.jobs.default_workers = lambda device: 1
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for stage in STAGES:
            run = Run(RunFolder(Path(place) / "run"), given.source, config, quiet=True)
            profile = cProfile.Profile()
            profile.runcall(run.execute, (stage,))
            row: dict[str, Any] = {"stage": stage, **breakdown(profile)}
            print(row, *largest(profile), sep="\n    ", flush=True)
            rows.append({**row, "most own time, apart from tensors": largest(profile)})
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share of the run"] = round(row["seconds"] / total, 3)
    if not given.no_result:
        write_result(
            "pipeline_profile", {"seconds": total, "stages": rows}, config={"source": given.source, **vars(given)},
            notes="Every stage opens the data again here; 'imports' are those that the stage is the first to need.",
        )  # fmt: skip


if __name__ == "__main__":
    main()
