import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from imbdiff.data.augment import Augmentation, scaled
from imbdiff.data.auto_augment import apply_policy
from imbdiff.runtime.streams import torch_rng


def batch(b=6, c=3, h=5, w=7):
    return torch.arange(b * c * h * w, dtype=torch.float32).reshape(b, c, h, w)


def reference(x, numbers, symmetry, shift):
    """One image at a time: exchange axes, mirror, pad by repeating the border, cut out."""
    out = []
    for image, (u, v, w, up, axes, *_) in zip(x.numpy(), numbers.numpy(), strict=True):
        if symmetry == "turns" and axes < 0.5 and image.shape[1] == image.shape[2]:
            image = image.transpose(0, 2, 1)
        if symmetry == "turns" and up < 0.5:
            image = image[:, ::-1]
        if symmetry != "none" and u < 0.5:
            image = image[:, :, ::-1]
        dy = int(np.floor(v * (2 * shift + 1))) - shift
        dx = int(np.floor(w * (2 * shift + 1))) - shift
        padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        height, width = image.shape[1:]
        out.append(padded[:, shift - dy : shift - dy + height, shift - dx : shift - dx + width])
    return np.stack(out)


@pytest.mark.parametrize("symmetry", ["none", "mirror", "turns"])
@pytest.mark.parametrize(("shift", "side"), [(0, 7), (2, 7), (4, 5)])
def test_against_one_image_at_a_time(symmetry, shift, side):
    augmentation = Augmentation(symmetry, shift)
    x = batch(40, w=side)
    numbers = augmentation.draw(40, torch_rng(0, "augment"))
    found = augmentation.apply(x, numbers)
    assert np.array_equal(found.numpy(), reference(x, numbers, symmetry, shift))
    halves = torch.cat([augmentation.apply(x[:5], numbers[:5]), augmentation.apply(x[5:], numbers[5:])])
    assert torch.equal(found, halves)


def test_all_eight_symmetries_of_the_square_are_equally_likely():
    x = torch.arange(4).reshape(1, 1, 2, 2).repeat(8000, 1, 1, 1)
    augmentation = Augmentation("turns")
    found = augmentation.apply(x, augmentation.draw(8000, torch_rng(3))).flatten(1)
    kinds, often = found.unique(dim=0, return_counts=True)
    square = np.arange(4).reshape(2, 2)
    wanted = {tuple(np.rot90(s, k).flatten().tolist()) for s in (square, square.T) for k in range(4)}
    assert {tuple(kind.tolist()) for kind in kinds} == wanted
    assert (often - 1000).abs().max() < 4 * (8000 / 8 * 7 / 8) ** 0.5


def test_covering_by_hand():
    x = torch.zeros(3, 2, 4, 4, dtype=torch.uint8)
    numbers = torch.full((3, 7), 0.5)
    numbers[:, 5] = torch.tensor([0.3, 0.0, 0.99])  # rows 1, 0, 3
    numbers[:, 6] = torch.tensor([0.6, 0.0, 0.99])  # columns 2, 0, 3
    covered = Augmentation(erase=2).apply(x, numbers)
    assert covered.dtype == torch.uint8
    assert (covered[:, 0] == covered[:, 1]).all()
    where = [(covered[i, 0] == 127).nonzero().tolist() for i in range(3)]
    assert where == [[[0, 1], [0, 2], [1, 1], [1, 2]], [[0, 0]], [[2, 2], [2, 3], [3, 2], [3, 3]]]
    assert set(covered.unique().tolist()) == {0, 127}


def test_descriptions():
    assert Augmentation().describe() == "none"
    text = Augmentation("turns", shift=1, erase=8).describe()
    assert text == (
        "mirrored at random, turned by quarters at random, shifted by up to 1 pixel, a square of 8 pixels covered"
    )


def test_downwards_and_to_the_right_by_hand():
    x = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    moved = Augmentation(shift=1).apply(x, torch.tensor([[0.9, 0.99, 0.5]]))  # dy = +1, dx = 0
    assert moved.tolist() == [[[[1, 2], [1, 2]]]]
    moved = Augmentation(shift=1).apply(x, torch.tensor([[0.9, 0.5, 0.99]]))  # dy = 0, dx = +1
    assert moved.tolist() == [[[[1, 1], [3, 3]]]]
    assert moved.dtype == torch.uint8


def test_settings_do_not_change_the_numbers():
    found = [Augmentation(s, shift, erase).draw(4, torch_rng(1)) for s, shift, erase in
             (("none", 0, 0), ("mirror", 3, 0), ("turns", 0, 2))]  # fmt: skip
    found.append(Augmentation(policy="autoaugment-cifar").draw(4, torch_rng(1))[:, :7])
    assert all(torch.equal(found[0], other) for other in found)
    assert found[0].shape == (4, 7)
    assert 0 <= found[0].min() <= found[0].max() < 1


def test_offsets_are_uniform_and_within_bounds():
    x = torch.zeros(5000, 1, 1, 7)
    x[..., 3] = 1
    augmentation = Augmentation(shift=2)
    where = augmentation.apply(x, augmentation.draw(5000, torch_rng(2))).argmax(-1).flatten()
    counts = torch.bincount(where, minlength=7)
    assert counts[[0, 6]].tolist() == [0, 0]
    assert (counts[1:6] > 850).all()
    last = torch.full((1, 7), float(np.nextafter(np.float32(1), np.float32(0))))
    assert Augmentation(shift=50).apply(batch(1, 1, 1, 200), last)[0, 0, 0, 50] == 0


def test_nothing_switched_on_is_the_identity():
    x = batch()
    assert Augmentation().apply(x, torch.zeros(6, 7)) is x


def test_the_literatures_crops_then_policy_then_cover():
    x = torch.randint(0, 256, (90, 3, 12, 12), dtype=torch.uint8, generator=torch_rng(3))
    literature = Augmentation("mirror", shift=2, border="zero", policy="autoaugment-cifar", erase=4)
    numbers = literature.draw(90, torch_rng(4))
    assert numbers.shape == (90, 12)
    cropped = Augmentation("mirror", shift=2, border="zero").apply(x, numbers)
    changed = apply_policy(cropped, numbers[:, 7:])
    assert torch.equal(literature.apply(x, numbers), Augmentation(erase=4).apply(changed, numbers))
    assert not torch.equal(cropped, changed)


def test_a_black_border_is_that_of_a_random_crop_of_padded_images():
    x = torch.randint(0, 256, (20, 3, 7, 6), dtype=torch.uint8, generator=torch_rng(5))
    augmentation = Augmentation("mirror", shift=3, border="zero")
    numbers = augmentation.draw(len(x), torch_rng(6))
    wanted = []
    for image, (u, down, right, *_) in zip(x.permute(0, 2, 3, 1).numpy(), numbers.numpy(), strict=True):
        padded = ImageOps.expand(Image.fromarray(image[:, ::-1].copy() if u < 0.5 else image), 3, 0)
        left, top = 6 - int(right * 7), 6 - int(down * 7)
        wanted.append(np.asarray(padded.crop((left, top, left + 6, top + 7))))
    assert np.array_equal(augmentation.apply(x, numbers).permute(0, 2, 3, 1).numpy(), np.stack(wanted))
    assert "with a black border" in augmentation.describe()


def test_scaling_to_minus_one_and_one():
    assert scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
