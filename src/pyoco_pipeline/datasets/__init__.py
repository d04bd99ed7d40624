"""Kedro datasets of this project."""

from pyoco_pipeline.datasets.folder import FolderDataset, WorkFolderDataset

__all__ = ["FolderDataset", "WorkFolderDataset"]
