"""What can be known of a run before it starts: files, shapes, memory, disk."""

from pyoco_pipeline.preflight.findings import Finding, find_all

__all__ = ["Finding", "find_all"]
