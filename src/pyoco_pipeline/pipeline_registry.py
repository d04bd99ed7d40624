"""The project's pipelines by name; `__default__` is the whole method from data to report."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

SPINE = ("ingest", "pretrain_image", "inflate", "finetune_video", "generate", "evaluate", "report")


def register_pipelines() -> dict[str, Pipeline]:
    """All pipelines under `pipelines/`, and their sum as `__default__`."""
    pipelines = find_pipelines(raise_errors=True)
    pipelines["__default__"] = sum((pipelines[name] for name in SPINE if name in pipelines), Pipeline([]))
    return pipelines
