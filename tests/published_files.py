"""Files of random weights in the published formats, for the tests of the published extractors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fixtures.random_weights import random_weights
from torch import nn

FIXTURES = Path(__file__).parent / "fixtures"


def reference(name: str) -> dict[str, np.ndarray]:
    """Outputs of a published implementation, made by fixtures/make_reference_outputs.py."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files if key != "made_with"}


def random_state(net: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of the network's own keys, without counters of batch norms, as some published files are."""
    shapes = {
        name: tuple(value.shape)
        for name, value in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return {name: torch.from_numpy(value) for name, value in random_weights(shapes).items()}
