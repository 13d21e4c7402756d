"""The table of chips is found by what jax calls a device."""

import pytest

from sttts_jax.chips import CHIPS, chip_of, peak_flops


def test_peaks() -> None:
    assert peak_flops("cpu") is None and chip_of("cpu") is None
    assert peak_flops("TPU v5p") == 459e12 and peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12


@pytest.mark.parametrize("kind", sorted(CHIPS))
def test_numbers_are_of_one_device_and_have_a_source(kind: str) -> None:
    chip = CHIPS[kind]
    assert 100e12 < chip.peak < 3000e12 and 16 <= chip.hbm_gib <= 192 and chip.source
    assert 100 < chip.peak / chip.hbm < 600  # FLOPs a byte: within what machines of these years have
    assert chip.link < chip.hbm and (chip.network or 0) < chip.link
