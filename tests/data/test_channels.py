"""Channels that a run takes from what images show, whatever they are saved as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.inspect import inspect
from imbdiff.data.splits import prepare
from tests.data.making import noise


def _grey(path: Path, mode: str = "RGB", seed: int = 0) -> Path:
    """A grey image of noise, saved in `mode`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(12, 9, 1, seed=seed)[..., 0]).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("ending", "modes"),
    [("png", ["RGB"]), ("jpg", ["RGB"]), ("png", ["RGBA"]), ("png", ["L", "RGB", "LA"]), ("tif", ["CMYK", "L"])],
)
@pytest.mark.parametrize("large", [False, True])
def test_grey_saved_in_colour_is_grey_and_one_coloured_pixel_is_not(
    ending: str, modes: list[str], large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # the headers of some images stand for all, decoded images are kept on disk
        monkeypatch.setattr("imbdiff.data.source.SAMPLE_FROM", 5)
        monkeypatch.setattr("imbdiff.data.source.SAMPLE", 3)
    for i in range(24):
        _grey(
            tmp_path / "set" / ("train", "test")[i % 3 == 0] / "ab"[i % 2] / f"{i}.{ending}", modes[i % len(modes)], i
        )
    cache = tmp_path / "kept" if large else "off"
    made = prepare(tmp_path / "set", cache=cache)
    assert made.train.shape == (12, 9, 1)
    assert any("--data.channels colour" in note for note in made.warnings)
    asked = prepare(tmp_path / "set", channels="colour", cache=cache)
    assert asked.train.shape == (12, 9, 3)
    np.testing.assert_array_equal(asked.test.images[:], np.repeat(made.test.images[:], 3, axis=3))
    assert inspect(tmp_path / "set")["channels"] == 1
    with Image.open(tmp_path / "set" / "test" / "b" / f"15.{ending}") as image:  # one of the last
        coloured = image.convert("RGB")
    coloured.paste((200, 10, 10), (0, 0, 4, 4))
    coloured.save(tmp_path / "set" / "test" / "b" / f"15.{ending}")
    assert prepare(tmp_path / "set", cache=cache).train.shape == (12, 9, 3)
    assert prepare(tmp_path / "set", channels="grey", cache=cache).train.shape == (12, 9, 1)
    assert inspect(tmp_path / "set")["channels"] == 3


def test_arrays_given_in_python_keep_their_channels() -> None:
    x = np.repeat(noise(9, 6, 6)[..., None], 3, axis=-1)
    assert prepare((x, np.arange(9) % 2)).train.shape == (6, 6, 3)
