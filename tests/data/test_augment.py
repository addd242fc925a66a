import numpy as np
import pytest
import torch

from imbdiff.data.augment import Augmentation
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng


def batch(b=6, c=3, h=5, w=7):
    return torch.arange(b * c * h * w, dtype=torch.float32).reshape(b, c, h, w)


def row(*first):
    return torch.tensor([[*first, *[0.9] * (9 - len(first))]])


def reference(x, draws, flip, shift, turns=False):
    """One image at a time: exchange axes, mirror, pad by repeating the border, cut out."""
    out = []
    for image, (u, v, w, up, axes, *_) in zip(x.numpy(), draws.numpy(), strict=True):
        if turns and axes < 0.5 and image.shape[1] == image.shape[2]:
            image = image.transpose(0, 2, 1)
        if turns and up < 0.5:
            image = image[:, ::-1]
        if flip and u < 0.5:
            image = image[:, :, ::-1]
        dy = int(np.floor(v * (2 * shift + 1))) - shift
        dx = int(np.floor(w * (2 * shift + 1))) - shift
        padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        height, width = image.shape[1:]
        out.append(padded[:, shift - dy : shift - dy + height, shift - dx : shift - dx + width])
    return np.stack(out)


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 2), (False, 4)])
@pytest.mark.parametrize(("turns", "side"), [(False, 7), (True, 7), (True, 5)])
def test_against_one_image_at_a_time(flip, shift, turns, side):
    augmentation = Augmentation(flip, shift, turns)
    x = batch(40, w=side)
    draws = augmentation.draw(40, torch_rng(0, "augment"))
    assert np.array_equal(augmentation.apply(x, draws).numpy(), reference(x, draws, flip, shift, turns))


def test_all_eight_symmetries_of_the_square_are_equally_likely():
    x = torch.arange(4).reshape(1, 1, 2, 2).repeat(8000, 1, 1, 1)
    augmentation = Augmentation.of("turns")
    found = augmentation.apply(x, augmentation.draw(8000, torch_rng(3))).flatten(1)
    kinds, often = found.unique(dim=0, return_counts=True)
    square = np.arange(4).reshape(2, 2)
    wanted = {tuple(np.rot90(s, k).flatten().tolist()) for s in (square, square.T) for k in range(4)}
    assert {tuple(kind.tolist()) for kind in kinds} == wanted
    assert (often - 1000).abs().max() < 4 * (8000 / 8 * 7 / 8) ** 0.5


def test_lighting_by_hand():
    x = torch.tensor([[[[40, 60]]], [[[200, 250]]]], dtype=torch.uint8)
    draws = torch.full((2, 9), 0.5)
    draws[0, 5], draws[0, 6] = 1.0, 0.0  # 1.2 times as bright: 48, 72; a fifth less contrast about 60
    draws[1, 5] = 1.0  # 240, 300: clipped
    assert Augmentation(jitter=0.2).apply(x, draws).tolist() == [[[[50, 70]]], [[[240, 255]]]]
    assert Augmentation(jitter=0.2).apply(x, torch.full((2, 9), 0.5)).tolist() == x.tolist()


def test_covering_by_hand():
    x = torch.zeros(3, 2, 4, 4, dtype=torch.uint8)
    draws = torch.full((3, 9), 0.5)
    draws[:, 7] = torch.tensor([0.3, 0.0, 0.99])  # rows 1, 0, 3
    draws[:, 8] = torch.tensor([0.6, 0.0, 0.99])  # columns 2, 0, 3
    covered = Augmentation(erase=2).apply(x, draws)
    assert (covered[:, 0] == covered[:, 1]).all()
    where = [(covered[i, 0] == 127).nonzero().tolist() for i in range(3)]
    assert where == [[[0, 1], [0, 2], [1, 1], [1, 2]], [[0, 0]], [[2, 2], [2, 3], [3, 2], [3, 3]]]
    assert set(covered.unique().tolist()) == {0, 127}


def test_what_is_done_is_said():
    assert Augmentation().words() == "none"
    text = Augmentation.of("turns", shift=1, jitter=0.1, erase=8).words()
    assert text == (
        "mirrored at random, turned by quarters at random, shifted by up to 1 pixel, "
        "brightness and contrast changed by up to 10%, a square of 8 pixels covered"
    )
    assert Augmentation.of("mirror") == Augmentation(flip=True)
    assert Augmentation.of("none") == Augmentation()


def test_downwards_and_to_the_right_by_hand():
    x = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    moved = Augmentation(shift=1).apply(x, row(0.9, 0.99, 0.5))  # dy = +1, dx = 0
    assert moved.tolist() == [[[[1, 2], [1, 2]]]]
    moved = Augmentation(shift=1).apply(x, row(0.9, 0.5, 0.99))  # dy = 0, dx = +1
    assert moved.tolist() == [[[[1, 1], [3, 3]]]]
    assert moved.dtype == torch.uint8


def test_every_row_has_its_own_draws():
    augmentation = Augmentation(flip=True, shift=2)
    x = batch(8)
    draws = augmentation.draw(8, torch_rng(0))
    whole = augmentation.apply(x, draws)
    halves = torch.cat([augmentation.apply(x[:5], draws[:5]), augmentation.apply(x[5:], draws[5:])])
    assert torch.equal(whole, halves)


def test_settings_do_not_change_the_draws():
    draws = [Augmentation(flip, shift).draw(4, torch_rng(1)) for flip in (False, True) for shift in (0, 3)]
    draws.append(Augmentation.of("turns", jitter=0.3, erase=2).draw(4, torch_rng(1)))
    assert torch.equal(draws[0][:, :3], torch.rand((4, 3), generator=torch_rng(1)))  # of runs from before
    assert draws[0].shape == (4, 9)
    assert all(torch.equal(draws[0], other) for other in draws)
    assert draws[0].min() >= 0
    assert draws[0].max() < 1


def test_offsets_are_uniform_and_within_bounds():
    x = torch.zeros(5000, 1, 1, 7)
    x[..., 3] = 1
    augmentation = Augmentation(shift=2)
    where = augmentation.apply(x, augmentation.draw(5000, torch_rng(2))).argmax(-1).flatten()
    counts = torch.bincount(where, minlength=7)
    assert counts[[0, 6]].tolist() == [0, 0]
    assert (counts[1:6] > 850).all()


def test_draws_next_to_one_stay_within_bounds():
    draws = torch.full((1, 9), float(np.nextafter(np.float32(1), np.float32(0))))
    x = batch(1, 1, 1, 200)
    assert Augmentation(shift=50).apply(x, draws)[0, 0, 0, 50] == 0


def test_nothing_switched_on_is_the_identity():
    x = batch()
    assert Augmentation().apply(x, torch.zeros(6, 9)) is x


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="-1"):
        Augmentation(shift=-1)
    with pytest.raises(ConfigError, match="jitter 1"):
        Augmentation(jitter=1.0)
    with pytest.raises(ConfigError, match="erase -2"):
        Augmentation(erase=-2)
    with pytest.raises(ValueError, match="draws must be"):
        Augmentation(flip=True).apply(batch(), torch.zeros(5, 9))
