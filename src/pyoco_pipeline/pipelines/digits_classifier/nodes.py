"""Training of a digits classifier: that which ships with the package, or one for crossing scenes."""

from __future__ import annotations

from functools import partial

from pyoco_pipeline.datasets.folder import FolderWriter
from pyoco_pipeline.evaluation.settings import Digits3DTraining


def train_classifier(digits_classifier: Digits3DTraining) -> FolderWriter:
    """Train the classifier on rendered training glyphs and read held-out glyphs with it."""
    import torch

    from pyoco_pipeline.evaluation.digits3d import save_digits3d
    from pyoco_pipeline.evaluation.digits3d_training import train_digits3d

    device = "cuda" if torch.cuda.is_available() else "cpu"
    state, card = train_digits3d(digits_classifier, device)
    return partial(save_digits3d, state=state, card=card)
