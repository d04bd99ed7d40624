"""Training: settings, the trainer, averaged weights and checkpoints."""

from pyoco_pipeline.training.settings import NoiseSettings, Settings, SigmaSettings, TrainSettings

__all__ = ["NoiseSettings", "Settings", "SigmaSettings", "TrainSettings"]
