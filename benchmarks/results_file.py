"""Result files: what a benchmark writes, and what must not be in it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from imbdiff.pipeline.environment import processor
from imbdiff.runtime.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
NUMBER = (
    "metric", "k", "extractor", "scope", "reference", "value", "low", "high", "n_synthetic", "n_reference",
)  # fmt: skip
PACKAGES = ("imbalanced-diffusion", "torch", "numpy", "diffusers", "accelerate", "scikit-learn", "pillow")


def method_values(text: str) -> dict[str, Any]:
    """Options of a configuration for "METHOD NAME=VALUE ...": a method and some of its constants."""
    method, *constants = text.split()
    return {"method": method, **{f"method.{name}": value for name, _, value in (c.partition("=") for c in constants)}}


def short_number(row: dict[str, Any]) -> dict[str, Any]:
    """What a result file keeps of a record of "numbers" in metrics.json."""
    return {key: row.get(key) for key in NUMBER}


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, memory, GPUs. Nothing that names the machine."""
    model = processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        seen = torch.cuda.get_device_properties(i)
        gpus.append({"model": seen.name, "memory_gib": round(seen.total_memory / 2**30, 1)})
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cpu": model, "cores": cores, "memory_gib": memory, "gpus": gpus, "machine": platform.machine()}


def versions() -> dict[str, Any]:
    """Versions of what ran, the commit, and the thread settings, which change timings as much as versions do."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.system()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    with suppress(OSError, subprocess.CalledProcessError):
        git = ("git", "-C", str(ROOT))
        found["commit"] = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True).strip()
        found["commit"] += " with local changes" if changed else ""
    found["torch_threads"] = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        if name in os.environ:
            found[name] = os.environ[name]
    return found


def scrub(value: Any) -> Any:
    """`value` without the name of this machine and without absolute paths: those in the repository become relative to
    it, of others the last part stays."""
    if isinstance(value, dict):
        return {str(k): scrub(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(v) for v in value]
    if isinstance(value, Path):
        return scrub(str(value))
    if not isinstance(value, str):
        return value
    inside = re.escape(str(ROOT)) + r"(?:/|(?=$|[\s'\",:;)]))"
    text = re.sub(inside, lambda found: "" if found.group().endswith("/") else ".", value)
    text = re.sub(r"(?<![\w./~-])~?/(?:[^\s/'\",:;]+/)+([^\s/'\",:;]*)/?", r"\1", text)
    host = socket.gethostname()
    return re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "HOST", text) if host not in ("", "localhost") else text


def command_line() -> str:
    """The command that started this program, as one would type it in the repository."""
    return scrub(shlex.join(["python", *sys.argv]))


def hardware_slug(found: dict[str, Any]) -> str:
    """Short name of the hardware for file names: the first GPU, otherwise cores and CPU."""
    words = found["gpus"][0]["model"] if found["gpus"] else f"{found['cores']}x {found['cpu']}"
    words = re.sub(r"\(R\)|\(TM\)|\bCPU\b|\bProcessor\b|@.*", " ", words, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].rstrip("-")


def write_result(
    topic: str,
    result: dict[str, Any],
    *,
    config: dict[str, Any],
    command: str | None = None,
    notes: str = "",
    folder: Path = ROOT / "benchmarks" / "results",
    date: datetime.date | None = None,
) -> tuple[Path, Path]:
    """Writes `<topic>_<hardware>_<date>.json` and `.md` and returns both paths.

    Args:
        topic: lower-case words joined by underscores.
        result: from `compare`, or any JSON-able dict of numbers.
        config: everything that was chosen and could have been chosen otherwise.
        command: the exact command; this program's own by default.
        notes: what the numbers say and what they do not, in Markdown.
        folder, date: where, and the day in the file's name (today). An earlier result of the same day is kept: the new
            one gets a number.

    Raises:
        ValueError: `topic` is not made of lower-case words, or a number is not finite.
    """
    if not re.fullmatch(r"[a-z0-9]+(?:_[a-z0-9]+)*", topic):
        raise ValueError(f"topic {topic!r} must be lower-case words joined by underscores")
    machine, day = hardware(), (date or datetime.date.today()).isoformat()
    record = scrub(
        {
            "topic": topic,
            "date": day,
            "command": command or command_line(),
            "hardware": machine,
            "versions": versions(),
            "config": config,
            "result": result,
            "notes": notes,
        }
    )
    stem, number = f"{topic}_{hardware_slug(machine)}_{day}", 2
    name = stem
    while (folder / f"{name}.json").exists() or (folder / f"{name}.md").exists():
        name, number = f"{stem}_{number}", number + 1
    paths = folder / f"{name}.json", folder / f"{name}.md"
    write_json(paths[0], record)
    write_text(paths[1], markdown(record))
    return paths


def markdown(record: dict[str, Any]) -> str:
    """The readable half of a result file."""
    lines = [f"# {record['topic'].replace('_', ' ')}", "", f"{record['date']}", "", f"    {record['command']}", ""]
    lines += [record["notes"], ""] if record["notes"] else []
    result = record["result"]
    if "sides" in result:
        lines += _side_table(result)
    else:
        lines += ["## Result", "", *_pairs(result)]
    for part in ("hardware", "versions", "config"):
        lines += ["", f"## {part.capitalize()}", "", *_pairs(record[part])]
    return "\n".join(lines) + "\n"


def _side_table(result: dict[str, Any]) -> list[str]:
    memory = [key for key in ("peak_rss_mb", "rise_mb", "peak_gpu_mb") if key in result["sides"][0]]
    heads = ["side", "wall s", "CPU s", *(key.replace("_", " ") for key in memory), "forward passes", "GFLOP"]
    lines = ["Median (quartiles; extremes). " + ", ".join(f"{k}: {v}" for k, v in result["method"].items()) + ".", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for side in result["sides"]:
        cells = [side["name"].replace("|", "\\|"), *(_spread_text(side[key]) for key in ("wall_s", "cpu_s", *memory))]
        cells += [", ".join(map(str, side["forwards"])) or "not counted", f"{side['flop'] / 1e9:.4g}"]
        lines.append("| " + " | ".join(cells) + " |")
    for ratio in result["ratios"]:
        lines += ["", f"{ratio['name']} / {ratio['against']}: wall {_spread_text(ratio['wall'])}, "
                      f"CPU {_spread_text(ratio['cpu'])}, over neighbouring pairs."]  # fmt: skip
    return lines


def _spread_text(s: dict[str, Any]) -> str:
    q = "{:.4g}".format
    return f"{q(s['median'])} ({q(s['q1'])} to {q(s['q3'])}; {q(s['min'])} to {q(s['max'])})"


def _pairs(value: dict[str, Any]) -> list[str]:
    """One line a value; a list of records of the same keys becomes a table."""
    lines: list[str] = []
    for key, inner in value.items():
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner):
            lines += ["", f"{key}:", "", *_table([_flat(row) for row in inner]), ""]
        else:
            lines.append(f"- {key}: {inner}")
    return lines or ["none"]


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat.update(_flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _table(rows: list[dict[str, Any]]) -> list[str]:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row.get(head) for head in heads]
        texts = ["" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c).replace("|", "\\|") for c in cells]
        lines.append("| " + " | ".join(texts) + " |")
    return lines
