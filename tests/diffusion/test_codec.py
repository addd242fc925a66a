"""The identity codec."""

from __future__ import annotations

import torch

from imbdiff.diffusion.codec import IdentityCodec


def test_every_value_comes_back_exactly() -> None:
    codec = IdentityCodec((1, 16, 16))
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    z = codec.encode(images)
    assert z.dtype == torch.float32
    assert z.min() == -1
    assert z.max() == 1
    torch.testing.assert_close(z.double(), images.double() / 127.5 - 1, atol=1e-7, rtol=0)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(codec.decode(z.to(dtype)), images)
    assert torch.equal(images, torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))  # not changed in place


def test_decoding_clamps_and_rounds() -> None:
    codec = IdentityCodec((1, 1, 1))
    step = 2 / 255
    values = [-50.0, -1.0001, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.51 * step, 1.0001, 50.0]
    decoded = codec.decode(torch.tensor(values).reshape(-1, 1, 1, 1)).flatten().tolist()
    assert decoded == [0, 0, 0, 1, 254, 255, 255]


def test_decoding_leaves_its_input_alone() -> None:
    z = torch.full((1, 1, 2, 2), 3.0)
    IdentityCodec((1, 2, 2)).decode(z)
    assert (z == 3).all()
