import numpy as np
import pytest
import torch

from imbdiff.data.augment import Augmentation
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng


def batch(b=6, c=3, h=5, w=7):
    return torch.arange(b * c * h * w, dtype=torch.float32).reshape(b, c, h, w)


def reference(x, draws, flip, shift):
    """One image at a time: mirror, pad by repeating the border, cut out."""
    out = []
    for image, (u, v, w) in zip(x.numpy(), draws.numpy(), strict=True):
        if flip and u < 0.5:
            image = image[:, :, ::-1]
        dy = int(np.floor(v * (2 * shift + 1))) - shift
        dx = int(np.floor(w * (2 * shift + 1))) - shift
        padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        height, width = image.shape[1:]
        out.append(padded[:, shift - dy : shift - dy + height, shift - dx : shift - dx + width])
    return np.stack(out)


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 2), (False, 4)])
def test_against_one_image_at_a_time(flip, shift):
    augmentation = Augmentation(flip, shift)
    x = batch(40)
    draws = augmentation.draw(40, torch_rng(0, "augment"))
    assert np.array_equal(augmentation.apply(x, draws).numpy(), reference(x, draws, flip, shift))


def test_downwards_and_to_the_right_by_hand():
    x = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    moved = Augmentation(shift=1).apply(x, torch.tensor([[0.9, 0.99, 0.5]]))  # dy = +1, dx = 0
    assert moved.tolist() == [[[[1, 2], [1, 2]]]]
    moved = Augmentation(shift=1).apply(x, torch.tensor([[0.9, 0.5, 0.99]]))  # dy = 0, dx = +1
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
    assert draws[0].shape == (4, 3)
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
    draws = torch.full((1, 3), float(np.nextafter(np.float32(1), np.float32(0))))
    x = batch(1, 1, 1, 200)
    assert Augmentation(shift=50).apply(x, draws)[0, 0, 0, 50] == 0


def test_nothing_switched_on_is_the_identity():
    x = batch()
    assert Augmentation().apply(x, torch.zeros(6, 3)) is x


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="-1"):
        Augmentation(shift=-1)
    with pytest.raises(ValueError, match="draws must be"):
        Augmentation(flip=True).apply(batch(), torch.zeros(5, 3))
