"""Which precision a device trains in by itself."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from imbdiff.runtime.device import cpu_threads, make_accelerator, resolve_precision


@pytest.mark.parametrize(
    ("capabilities", "side", "expected"),
    [
        ({"amx_bf16": True}, 32, "bf16"),
        ({"amx_bf16": True}, 16, "bf16"),
        ({"amx_bf16": True}, 15, "no"),
        ({"amx_bf16": False, "avx512_bf16": True}, 32, "no"),
        ({"neon": True}, 32, "no"),
        (None, 32, "no"),
    ],
)
def test_a_cpu_trains_in_bfloat16_where_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: Mapping[str, bool] | None, side: int, expected: str
) -> None:
    if capabilities is None:  # a version of torch that does not tell
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert make_accelerator("cpu", "auto", side).mixed_precision == expected
    assert make_accelerator("cpu", "fp32", side).mixed_precision == "no"
    assert make_accelerator("cpu", "bf16", side).mixed_precision == "bf16"


def test_a_gpu_trains_in_bfloat16_at_any_size_where_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=found: found)
        assert resolve_precision("auto", torch.device("cuda"), 1) == ("bf16" if found else "fp32")


def test_threads_are_limited_inside_and_given_back_whatever_happens() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with cpu_threads(1):
            assert torch.get_num_threads() == 1
            with cpu_threads(8):  # no more than there are
                assert torch.get_num_threads() == 1
        with cpu_threads(None):
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), cpu_threads(1):
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
