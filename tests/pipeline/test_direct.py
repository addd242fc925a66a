"""`imbdiff evaluate FAKE --reference REAL`, `imbdiff reference`: any two sets, and what is refused before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbdiff.cli import _called, main
from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.numbers import Number
from imbdiff.pipeline.direct import Measuring, evaluate_any, reference_any
from imbdiff.runtime.errors import ConfigError, DataError, RunError

QUIET = Measuring(quiet=True)


def _digits(n: int, seed: int, noise: float = 0.0, names: tuple[str, ...] | None = None) -> ImageSet:
    from imbdiff.data.plain import read_any

    every = read_any("digits").images
    g = np.random.default_rng(seed)
    rows = np.sort(g.choice(len(every), n, replace=False))
    x = every.images[rows].astype(float) + noise * g.normal(size=(n, 8, 8, 1))
    return ImageSet(np.clip(x, 0, 255).astype(np.uint8), every.labels[rows], names or every.class_names)


def _write(images: ImageSet, folder: Path, flat: bool = False, mode: str = "L") -> Path:
    for i, (x, k) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        place = folder if flat else folder / images.class_names[k]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[..., 0]).convert(mode).save(place / f"{i:05d}.png")
    return folder


def _value(found: dict[str, Any], metric: str, scope: str = "all", reference: str | None = None) -> dict[str, Any]:
    rows = [r for r in found["numbers"] if Number.from_json(r).label == metric and r["scope"] == scope]
    return next(r for r in rows if reference is None or r["reference"] == reference)


def test_folders_arrays_and_references_give_the_same_numbers(tmp_path: Path) -> None:
    fake, real = _digits(150, 0, 20), _digits(200, 1)
    folders = evaluate_any(_write(fake, tmp_path / "fake"), _write(real, tmp_path / "real"), how=QUIET)
    sets = evaluate_any(fake, real, how=QUIET)
    reference_any(tmp_path / "real", tmp_path / "ref", how=QUIET)
    stored = evaluate_any(tmp_path / "fake", tmp_path / "ref", how=QUIET)
    for other in (sets, stored):
        for row, twin in zip(folders["numbers"], other["numbers"], strict=True):
            assert (row["metric"], row["value"], row["low"]) == (twin["metric"], twin["value"], twin["low"])
    assert folders["memorisation"] is None
    assert "no training images" in folders["protocol"]["memorisation"]
    assert folders["classes"]["group"] is None


def test_training_images_bring_groups_and_memorisation(tmp_path: Path) -> None:
    train = _digits(300, 2)
    keep = np.flatnonzero((train.labels < 8) | (np.arange(300) % 4 == 0))
    train = train.select(keep)
    found = evaluate_any(_digits(150, 0, 20), _digits(200, 1), train, how=QUIET)
    assert {r["scope"] for r in found["numbers"]} == {"all", "many", "medium", "few"}
    assert {r["reference"] for r in found["numbers"]} >= {"images", "train"}
    assert found["memorisation"]["summary"][0]["n_synthetic"] == 150
    copied = evaluate_any(train, _digits(200, 1), train, how=QUIET)
    assert copied["memorisation"]["summary"][0]["exact_copies"] == len(train)


def test_flat_folders_and_single_classes_are_measured_without_labels(tmp_path: Path) -> None:
    fake = _write(_digits(60, 0), tmp_path / "fake", flat=True)
    real = _write(_digits(80, 1), tmp_path / "real")
    found = evaluate_any(fake, real, how=QUIET)
    assert found["classes"]["names"] == ["all images"]
    assert _value(found, "KD[random-conv]")["n_reference"] == 80


def test_the_command_writes_numbers_and_page_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake, real = _write(_digits(60, 0), tmp_path / "fake"), _write(_digits(80, 1), tmp_path / "real")
    out = tmp_path / "out"
    command = ["evaluate", str(fake), "--reference", str(real), "--out", str(out)]
    assert main([*command, "--extractor", "random-conv", "raw-pixels"]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert {e["name"] for e in found["protocol"]["extractors"]} == {"random-conv", "raw-pixels"}
    assert "random-conv" in (out / "report.html").read_text()
    assert "random-conv" in capsys.readouterr().out
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "features").glob("*.npz")}
    assert main([*command, "--extractor", "random-conv", "raw-pixels", "--quiet"]) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (out / "features").glob("*.npz")} == kept
    (out / "mine.txt").write_text("x")
    assert main(command) == 2
    assert "holds other files" in capsys.readouterr().err
    (tmp_path / "report.html").write_text("a page")
    assert main([*command[:-1], str(tmp_path / "report.html")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_the_reference_command_and_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake, real = _write(_digits(60, 0), tmp_path / "fake"), _write(_digits(80, 1), tmp_path / "real")
    assert main(["reference", str(real), "--out", str(tmp_path / "ref"), "--extractor", "raw-pixels"]) == 0
    assert "80 images" in capsys.readouterr().out
    command = ["evaluate", str(fake), "--reference", str(tmp_path / "ref"), "--out", str(tmp_path / "out")]
    assert main([*command, "--quiet"]) == 0  # with the extractors that it was made with
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["protocol"]["reference"] == str(real)
    assert [e["name"] for e in found["protocol"]["extractors"]] == ["raw-pixels"]
    # by an extractor that it was not made with: before any features are taken
    assert main([*command, "--extractor", "random-conv", "--quiet"]) == 2
    assert "no features of this random-conv, but those of raw-pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("size", "give --size 8"),
        ("classes", "no class of .* is in"),
        ("one", "at least two are needed"),
    ],
)
def test_sets_that_do_not_belong_together_are_refused(tmp_path: Path, how: str, said: str) -> None:
    real = _write(_digits(40, 1), tmp_path / "real")
    if how == "size":
        fake: Any = _digits(40, 0)
        fake = ImageSet(fake.images.repeat(2, 1).repeat(2, 2), fake.labels, fake.class_names)
    elif how == "classes":
        fake = _digits(40, 0, names=tuple("abcdefghij"))
    else:
        fake = _digits(1, 0)
    with pytest.raises(DataError, match=said):
        evaluate_any(fake, real, how=QUIET, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("grey", ["fake", "real"])
def test_grey_images_are_compared_with_colour_as_if_saved_in_colour(tmp_path: Path, grey: str) -> None:
    sets: dict[str, Any] = {"fake": _digits(40, 0), "real": _digits(40, 1)}
    colour = {k: ImageSet(x.images.repeat(3, -1), x.labels, x.class_names) for k, x in sets.items()}
    wanted = evaluate_any(colour["fake"], colour["real"], how=QUIET)
    found = evaluate_any(**{("fake" if k == "fake" else "reference"): (sets if k == grey else colour)[k] for k in sets},
                         how=QUIET)  # fmt: skip
    assert json.dumps(found["numbers"], default=str) == json.dumps(wanted["numbers"], default=str)


def test_references_of_mixed_sizes_get_the_size_of_the_synthetic_images(tmp_path: Path) -> None:
    real = _write(_digits(40, 1), tmp_path / "real")
    first = next(real.rglob("*.png"))
    Image.open(first).resize((20, 20)).save(first)
    found = evaluate_any(_digits(40, 0), real, how=QUIET)
    assert found["numbers"]


def test_missing_weights_are_said_before_any_long_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("IMBDIFF_OFFLINE", "1")
    fake, real = _write(_digits(40, 0), tmp_path / "fake"), _write(_digits(40, 1), tmp_path / "real")
    out = tmp_path / "out"
    command = ["evaluate", str(fake), "--reference", str(real), "--out", str(out), "--extractor", "inception"]
    assert main(command) == 2
    said = capsys.readouterr().err
    for word in ("6726825d", "weights-inception-2015-12-05", "--inception-weights", "https://"):
        assert word in said
    assert not out.exists()
    assert main([*command, "--inception-weights", str(tmp_path / "none.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err


def test_a_folder_that_is_no_run_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = _write(_digits(40, 0), tmp_path / "fake")
    assert main(["evaluate", str(fake)]) == 2
    assert "--reference REAL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "0"], "batch_size=0"),
        (["--batch-size", "-3"], "batch_size=-3"),
        (["--size", "0"], "--size=0"),
        (["--size", "3"], "[4, 4096]"),
        (["--size", "4097"], "--size=4097"),
    ],
)
def test_numbers_out_of_range_name_the_option(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["evaluate", "digits", "--reference", "digits"], ["reference", "digits"]):
        assert main([*command, "--out", str(tmp_path / "out"), *options]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_measuring_refuses_an_unknown_policy_and_takes_the_ends_of_the_range() -> None:
    with pytest.raises(ConfigError, match="--resize='squeeze'"):
        Measuring(resize="squeeze")
    Measuring(size=4, batch_size=1)
    Measuring(size=4096)


def test_default_folders_tell_sources_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gen.v1", "gen.v2"):
        _write(_digits(40, 0), Path(name))
    np.savez("set.v1.npz", x=_digits(5, 0).images)
    assert [_called(s) for s in ("gen.v1", "gen.v2/", "set.v1.npz", "digits")] == [
        "gen.v1",
        "gen.v2",
        "set.v1",
        "digits",
    ]
    command = ["--extractor", "raw-pixels", "--quiet"]
    assert main(["evaluate", "gen.v1", "--reference", "gen.v2", *command]) == 0
    assert (tmp_path / "evaluation-gen.v1" / "metrics.json").exists()
    assert main(["reference", "gen.v2", *command]) == 0
    assert (tmp_path / "reference-gen.v2" / "reference.json").exists()


def test_numbers_of_other_images_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = Measuring(quiet=True, extractor=("raw-pixels",))
    real, out = _digits(60, 1), tmp_path / "out"
    first = evaluate_any(_digits(40, 0), real, how=how, out=out)
    kept = (out / "metrics.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Measuring, "make", lambda *_: pytest.fail("extractors were made"))
        with pytest.raises(RunError, match="has the numbers of other images: images against images") as caught:
            evaluate_any(_digits(40, 2), real, how=how, out=out)
        assert "another --out" in caught.value.remedy
        with pytest.raises(RunError, match="other images"):
            evaluate_any(_digits(40, 0), _digits(60, 3), how=how, out=out)
    assert (out / "metrics.json").read_bytes() == kept
    # the same images again, by another extractor too
    again = evaluate_any(_digits(40, 0), real, how=Measuring(quiet=True), out=out)
    assert again["protocol"]["fingerprints"] == first["protocol"]["fingerprints"]
    (out / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="unknown ones"):
        evaluate_any(_digits(40, 0), real, how=how, out=out)


def test_all_images_of_a_fake_with_splits_unless_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(_digits(60, 0), tmp_path / "fake" / "train")
    _write(_digits(50, 7), tmp_path / "fake" / "test")
    real = _write(_digits(80, 1), tmp_path / "real")
    how = Measuring(quiet=True, extractor=("raw-pixels",))
    every = evaluate_any(tmp_path / "fake", real, how=how)
    assert every["protocol"]["n_synthetic"] == 110
    assert every["protocol"]["synthetic"] == f"{tmp_path / 'fake'} train and test"
    command = ["evaluate", str(tmp_path / "fake"), "--reference", str(real), "--extractor", "raw-pixels"]
    assert main([*command, "--fake-split", "test", "--out", str(tmp_path / "out")]) == 0
    assert f"{tmp_path / 'fake'} test: 50 images" in capsys.readouterr().out
    (tmp_path / "fake" / "notes.txt").touch()
    assert main([*command[:3], str(tmp_path / "fake"), *command[4:], "--out", str(tmp_path / "both")]) == 0
    assert capsys.readouterr().out.count("notes.txt") == 1  # of both splits once
    # the reference is its test images, as before
    assert evaluate_any(real, tmp_path / "fake", how=how)["protocol"]["n_reference"] == 50


def test_npz_without_labels_against_a_labelled_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "fake.npz", _digits(60, 0).images)
    found = evaluate_any(tmp_path / "fake.npz", _write(_digits(80, 1), tmp_path / "real"), how=QUIET)
    assert found["classes"]["names"] == ["all images"]
    assert found["protocol"]["n_synthetic"] == 60


@pytest.mark.parametrize("flat", ["reference", "fake"])
def test_a_stored_reference_and_a_fake_of_which_one_has_no_labels(tmp_path: Path, flat: str) -> None:
    fake = _write(_digits(60, 0), tmp_path / "fake", flat=flat == "fake")
    real = _write(_digits(80, 1), tmp_path / "real", flat=flat == "reference")
    reference_any(real, tmp_path / "ref", how=QUIET)
    stored = evaluate_any(fake, tmp_path / "ref", _digits(50, 3), how=QUIET)
    live = evaluate_any(fake, real, _digits(50, 3), how=QUIET)
    assert stored["classes"]["names"] == live["classes"]["names"] == ["all images"]
    a, b = (_value(f, "KD[random-conv]", reference=str(real)) for f in (stored, live))
    assert (a["value"], a["low"]) == (b["value"], b["low"])


def test_images_are_resized_as_the_stored_reference_was(tmp_path: Path) -> None:
    def oblong(n: int, seed: int) -> ImageSet:
        small = _digits(n, seed)
        return ImageSet(small.images.repeat(4, 1).repeat(2, 2), small.labels, small.class_names)

    fake, real = (_write(oblong(n, s), tmp_path / name) for n, s, name in ((60, 0, "fake"), (80, 1, "real")))
    pad = Measuring(quiet=True, extractor=("raw-pixels",), size=8, resize="pad")
    reference_any(real, tmp_path / "ref", how=pad)
    record = json.loads((tmp_path / "ref" / "reference.json").read_text())
    assert (record["size"], record["resize"]) == (8, "pad")
    unsaid = evaluate_any(fake, tmp_path / "ref", how=QUIET)  # neither size nor policy given
    live = evaluate_any(fake, real, how=pad)
    assert unsaid["protocol"]["fingerprints"]["synthetic"] == live["protocol"]["fingerprints"]["synthetic"]
    assert _value(unsaid, "FD[raw-pixels]")["value"] == _value(live, "FD[raw-pixels]")["value"]
    assert unsaid["protocol"]["resized"] == live["protocol"]["resized"] == "to 8 x 8 pixels: pad"
    for options, said in (({"size": 16}, "--size 16, but .* 8 x 8"), ({"resize": "crop"}, "made with --resize pad")):
        with pytest.raises(ConfigError, match=said):
            evaluate_any(fake, tmp_path / "ref", how=Measuring(quiet=True, **options))
    # a reference left as it was: the fake is brought to its size as asked
    native = _write(_digits(80, 1), tmp_path / "native")
    reference_any(native, tmp_path / "ref2", how=Measuring(quiet=True, extractor=("raw-pixels",)))
    with pytest.raises(DataError, match="32 x 16 grey, the reference is 8 x 8") as caught:
        evaluate_any(fake, tmp_path / "ref2", how=QUIET)
    assert "give --size 8" in caught.value.remedy
    found = evaluate_any(fake, tmp_path / "ref2", how=Measuring(quiet=True, size=8, resize="stretch"))
    assert found["protocol"]["resized"] == "to 8 x 8 pixels: stretch"


@pytest.mark.parametrize("name", ["train", "synthetic"])
def test_a_reference_called_as_another_set_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(_digits(80, 1), Path(name))
    out = tmp_path / "out"
    found = evaluate_any(_digits(60, 0), name, _digits(50, 2), how=QUIET, out=out)
    assert found["protocol"]["reference"] == f"reference ({name})"
    assert {r["reference"] for r in found["numbers"]} >= {f"reference ({name})", "train"}
    title = (out / "report.html").read_text().partition("<title>")[2].partition("</title>")[0]
    assert f"against reference ({name})" in title


@pytest.mark.parametrize("colour", ["fake", "reference", "train"])
def test_grey_against_rgb_is_measured_as_rgb_and_said(
    tmp_path: Path, colour: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"fake": _digits(40, 0), "reference": _digits(40, 1), "train": _digits(40, 2)}
    paths = {k: _write(x, tmp_path / k, mode="RGB") if k == colour else x for k, x in sets.items()}
    if colour != "reference":  # grey pixels saved as RGB are read as RGB
        assert evaluate_any(paths["fake"], paths["reference"], how=QUIET)["protocol"]["n_synthetic"] == 40
    both = {k: _write(x, tmp_path / "rgb" / k, mode="RGB") for k, x in sets.items()}
    found = evaluate_any(paths["fake"], paths["reference"], paths["train"], how=Measuring())
    assert "three equal channels" in capsys.readouterr().out
    same = evaluate_any(both["fake"], both["reference"], both["train"], how=QUIET)
    assert [row["value"] for row in found["numbers"]] == [row["value"] for row in same["numbers"]]


def test_against_a_stored_grey_reference_colours_are_refused_and_grey_saved_as_rgb_is_not(tmp_path: Path) -> None:
    stored = reference_any(_digits(40, 1), tmp_path / "ref", how=QUIET)
    grey = _digits(40, 0)
    rgb = ImageSet(grey.images.repeat(3, -1), grey.labels, grey.class_names)
    found, same = (evaluate_any(x, stored, how=QUIET) for x in (rgb, grey))
    assert [row["value"] for row in found["numbers"]] == [row["value"] for row in same["numbers"]]
    x = rgb.images.copy()
    x[0, 0, 0] = (255, 0, 0)
    with pytest.raises(DataError, match="RGB, the reference is 8 x 8 grey"):
        evaluate_any(replace(rgb, images=x), stored, how=QUIET)


@pytest.mark.parametrize("copies", [0, 1, 40])
def test_synthetic_images_that_equal_reference_images_are_counted(tmp_path: Path, copies: int) -> None:
    real, other = _digits(40, 1), _digits(40, 0, noise=20)
    fake = ImageSet(np.concatenate([real.images[:copies], other.images[copies:]]),
                    np.concatenate([real.labels[:copies], other.labels[copies:]]), real.class_names)  # fmt: skip
    stored = reference_any(real, tmp_path / "ref", how=QUIET)
    for reference in (real, stored):
        found = evaluate_any(fake, reference, how=QUIET, out=tmp_path / f"o{reference is real}")
        assert found["protocol"]["n_synthetic_in_reference"] == copies
        assert any(f"{copies} of 40 synthetic images equal" in w for w in found["warnings"]) == (copies > 0)
    assert json.loads((tmp_path / "oTrue/metrics.json").read_text())["warnings"] == found["warnings"]
    assert ("equal a reference image" in (tmp_path / "oTrue/report.html").read_text()) == (copies > 0)


@pytest.mark.parametrize(("kept", "warned"), [(10, True), (30, False)])
def test_most_images_left_out_is_said_at_the_end(
    tmp_path: Path, kept: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = _digits(200, 1), _digits(40, 0)
    names = np.array([*fake.class_names, "elsewhere"])
    labels = np.where(np.arange(40) < kept, fake.labels, 10)
    _write(real, tmp_path / "real")
    _write(ImageSet(fake.images, labels, tuple(names)), tmp_path / "fake")
    main(["evaluate", str(tmp_path / "fake"), "--reference", str(tmp_path / "real"), "--out", str(tmp_path / "o"),
          "--extractor", "raw-pixels"])  # fmt: skip
    last = capsys.readouterr().out.strip().splitlines()[-3:]
    assert any(line.startswith("warning: 30 of 40") for line in last) == warned


def test_images_of_one_class_are_counted_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    x = _digits(40, 0).images
    evaluate_any(x, _digits(40, 1).images, how=Measuring())
    assert "40 images of 1 class," in capsys.readouterr().out


def test_mixed_sizes_name_an_option_that_evaluate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        for name in ("real", "fake"):
            (tmp_path / name).mkdir(exist_ok=True)
            size = (12 + 4 * (i % 2), 12)
            x = np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)
            Image.fromarray(x).save(tmp_path / name / f"{i}.png")
    words = ["evaluate", str(tmp_path / "fake"), "--reference", str(tmp_path / "real"), "--out", str(tmp_path / "o"),
             "--extractor", "raw-pixels"]  # fmt: skip
    assert main(words) == 0
    assert "--data.size N or HxW" in capsys.readouterr().out
    assert main([*words[:-3], str(tmp_path / "p"), *words[-2:], "--data.size", "8x12"]) == 0
    assert "8x12x1" in capsys.readouterr().out
