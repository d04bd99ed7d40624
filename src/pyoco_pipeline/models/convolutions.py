"""How cuDNN chooses among its algorithms for a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tuned_convolutions(tune: bool) -> Iterator[None]:
    """Within, with `tune`: cuDNN times its algorithms at the first call of a shape, and takes the fastest from then on.

    Which that is can change from run to run, and the last bits of results with it. On a CPU nothing changes.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or tune
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
