"""What a model folder holds, for whoever chooses levels before anything is exported. No weights are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_sdk.wire.manifest import BITS
from export.compress.quantize import held_bytes
from export.foundation import Foundation


def describe(foundation: Foundation) -> dict[str, Any]:
    """Plain data, for JSON; see `export.manual.DESCRIBE`."""
    spec = foundation.spec
    weights = {
        name: np.broadcast_to(np.float32(0), tuple(parameter.shape))
        for name, parameter in foundation.skeleton().named_parameters()
    }
    return {
        "family": spec.family,
        "layers": spec.layers,
        "width": spec.width,
        "max_tokens": spec.max_tokens,
        "labels": list(spec.labels),
        "image": None if spec.image is None else str(spec.image),
        "tokenizer": foundation.tokenizer is not None,
        "weights_bytes": {str(bits): held_bytes(weights, bits) for bits in BITS},
    }
