"""FedPEFT's ViT-Base row, from the architecture alone."""

from __future__ import annotations

from benchmarks.vit_base import FLOAT_BYTES, counted


def test_fedpeft_s_parameters_and_bytes() -> None:
    """What the paper's code trains with 100 classes; a client sends 327.6 MiB of all of it, or 0.686 of the biases."""
    found = counted()
    assert found == {
        "full": 85_875_556,
        "head": 76_900,
        "bias": 179_812,
        "adapter": 225_220,
        "prompt": 169_060,
    }
    mib = {name: FLOAT_BYTES * count / 2**20 for name, count in found.items()}
    assert round(mib["full"], 1) == 327.6
    assert round(mib["bias"], 3) == 0.686
