"""Any content in the files that are read: arrays, Parquet, YAML, run and model folders. Refused in words or read.

Folders, archives, lists and tables: tests/data/test_hostile_files.py. Examples: IMBDIFF_EXAMPLES=500."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import imbdiff
from imbdiff.config import RunConfig, override
from imbdiff.diffusion.saved import load_model
from imbdiff.metrics.features import load_reference
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.predicting import load_classifier
from imbdiff.pipeline.run import open_run
from imbdiff.pipeline.sampling import finished, load_samples, plan_of_samples
from imbdiff.presets import preset
from imbdiff.running import read_file
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.errors import ImbdiffError
from imbdiff.runtime.files import sealed, unsealed
from imbdiff.runtime.log import read_jsonl

EXAMPLES = int(os.environ.get("IMBDIFF_EXAMPLES", "4"))
some = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="IMBDIFF_EXAMPLES" not in os.environ, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
LONGEST = 30.0
"""Seconds that a reader may take for a small file, on a busy machine."""

numbers = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
    st.sampled_from([0, -1, 2**63]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(["", "../x", "nan", "1e999"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """What is not read is refused with a remedy, soon."""
    began = time.monotonic()
    with contextlib.suppress(ImbdiffError):
        yield
    assert time.monotonic() - began < LONGEST


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with some bytes changed, left out, put in, or the end lost."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        piece = draw(st.binary(max_size=4))
        how = draw(st.sampled_from(["change", "insert", "remove", "end"]))
        if how == "end":
            del found[at:]
        else:
            found[at : at + (0 if how == "insert" else len(piece) or 1)] = b"" if how == "remove" else piece
    return bytes(found)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one thing inside replaced by any other, left out, or renamed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        inner = draw(changed(value[key]))
        kept = {k: v for k, v in value.items() if k != key}
        return kept if not draw(st.integers(0, 5)) else {**kept, key: inner}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(changed(value[at])), *value[at + 1 :]]
    return draw(values)


@pytest.fixture(scope="module")
def folder(finished_once: tuple[Path, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(finished_once[0], place)
    return place


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    kept = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(kept)


def page(folder: Path) -> object:
    run, prepared = open_run(folder)
    return run.report_data(prepared)


READERS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "stages.json": (lambda f: RunFolder(f).stages(), lambda f: RunFolder(f).check_whole(), load_classifier, page),
    "split.json": (lambda f: RunFolder(f).class_stats(), page),
    "environment.json": (page,),
    "config.yaml": (lambda f: RunFolder(f).saved(), page),
    "model/model.json": (lambda f: load_model(f / "model"),),
    "model/trained_on.json": (page,),
    "samples/manifest.json": (
        lambda f: plan_of_samples(f / "samples"), lambda f: finished(f / "samples", "x"),
        lambda f: load_samples(f / "samples", (8, 8, 1), tuple("0123456789")),
    ),
    "samples/plan.json": (page,),
    "classifier/model/classifier.json": (lambda f: load_classifier(f / "classifier" / "model"),),
    "log.jsonl": (lambda f: read_jsonl(f / "log.jsonl"),),
    "checkpoints/target/ckpt-000000000192/meta.json": (
        lambda f: CheckpointStore(f / "checkpoints" / "target").latest(lambda _: None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".json")])
def test_records_of_any_content(name: str, folder: Path) -> None:
    """Also with a checksum that fits, as of another version or from a person who means harm."""
    whole = json.loads((folder / name).read_text())

    @some
    @given(found=changed(whole), fits=st.booleans())
    @example(found=None, fits=False)
    @example(found=[1], fits=False)
    def check(found: Any, fits: bool) -> None:
        if fits and isinstance(found, dict):
            if name == "stages.json":
                marks = {k: dict(v) if isinstance(v, dict) else v for k, v in found.items()}
                found = {k: sealed({a: b for a, b in v.items() if a != "checksum"}) if isinstance(v, dict) else v
                         for k, v in marks.items()}  # fmt: skip
            else:
                found = sealed({k: v for k, v in found.items() if k != "checksum"})
        with replaced(folder / name, json.dumps(found).encode()):
            for reader in READERS[name]:
                with in_words():
                    reader(folder)

    check()


@pytest.mark.parametrize("name", [*READERS, "model/model.safetensors"])
def test_files_with_any_bytes(name: str, folder: Path) -> None:
    readers = READERS.get(name, READERS["model/model.json"])

    @some
    @given(data=damaged((folder / name).read_bytes()))
    @example(data=b"")
    @example(data=b"\xff\xfe\0")
    @example(data=b"[" * 100_000)
    def check(data: bytes) -> None:
        with replaced(folder / name, data):
            for reader in readers:
                with in_words():
                    reader(folder)

    check()


@some
@given(
    options=st.one_of(
        values, st.dictionaries(st.sampled_from(["train", "seed", "method", "data", "sample.steps", "device"]), values)
    ),
    text=st.one_of(st.none(), st.text(max_size=40)),
)  # fmt: skip
@example(options={"seed": 10**30}, text=None)
@example(options={"train": {"images": float("inf")}}, text=None)
@example(options={"method": {"name": None}}, text=None)
@example(options={1: 2}, text=None)
@example(options={}, text="a: &a [*a]")
@example(options={}, text="? [x]\n: y")
@example(options={}, text="2024-01-01: !!binary x")
def test_yaml_of_any_content(options: Any, text: str | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "options.yaml"
        path.write_text(yaml.safe_dump(options) if text is None else text)
        with in_words():
            override(preset("tiny"), read_file(str(path)))


def arrays(**given: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **given)
    return out.getvalue()


WHOLE = arrays(x=np.arange(2 * 9 * 8 * 8, dtype=np.uint8).reshape(18, 8, 8), y=np.arange(18) % 2)


@some
@given(data=damaged(WHOLE))
@example(data=b"PK\x05\x06" + b"\0" * 18)
def test_archives_of_arrays_with_any_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "set.npz"
        path.write_bytes(data)
        with in_words():
            imbdiff.load(path).read()


@some
@given(
    kind=st.sampled_from(["u1", "i8", "f4", "f8", "?", "c8", "U3", "S2", "M8[s]", "f2"]),
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=5),
    labels=st.lists(
        st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_subnormal=False), st.text(max_size=3)), max_size=6
    ),
    keys=st.sampled_from([("x", "y"), ("images", "labels"), ("train_images", "train_labels"), ("a", "b")]),
)
def test_arrays_of_any_kind(kind: str, shape: list[int], labels: list[Any], keys: tuple[str, str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "set.npz"
        with contextlib.suppress(ValueError, OverflowError, TypeError):
            path.write_bytes(arrays(**{keys[0]: np.zeros(shape, np.dtype(kind)), keys[1]: np.array(labels)}))
        if path.exists():
            with in_words():
                imbdiff.load(path).read()


@pytest.fixture(scope="module")
def parquet() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    from PIL import Image

    from tests.data.making import encoded, noise

    images = [{"bytes": encoded(Image.fromarray(noise(8, 8, 3)), "PNG"), "path": f"{i}.png"} for i in range(12)]
    out = io.BytesIO()
    pq.write_table(pyarrow.table({"image": images, "label": [i % 2 for i in range(12)]}), out)
    return out.getvalue()


def test_parquet_with_any_bytes(parquet: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "set.parquet"

    @settings(some, max_examples=max(4, EXAMPLES // 4))
    @given(data=damaged(parquet))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with in_words():
            imbdiff.load(path).read()

    check()


def test_reference_folders_of_any_content(folder: Path, tmp_path: Path) -> None:
    from imbdiff.pipeline.direct import Measuring, reference_any

    reference_any(str(folder / "samples"), tmp_path / "r", how=Measuring(extractor=("raw-pixels",), quiet=True))
    (record,) = (tmp_path / "r").glob("*.json")
    whole = json.loads(record.read_text())

    @some
    @given(found=changed(whole))
    def check(found: Any) -> None:
        with replaced(record, json.dumps(found).encode()), in_words():
            load_reference(tmp_path / "r")

    check()


def test_a_checksum_is_of_the_content() -> None:
    value = {"b": [1, 2.5, None], "a": {"x": "é"}}
    assert unsealed(json.loads(json.dumps(sealed(value)))) == value
    with pytest.raises(ValueError, match="altered"):
        unsealed({**sealed(value), "b": [1, 2.5]})
