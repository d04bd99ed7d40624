"""finetune_video: one namespace per stage of the cascade, each from the inflated image model, apart from the others."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.cascade.stages import STAGES
from pyoco_pipeline.pipelines.finetune_video.nodes import fine_tune


def create_pipeline(**_: object) -> Pipeline:
    return sum((_stage(name) for name in STAGES), Pipeline([]))


def _stage(name: str) -> Pipeline:
    shared = ("clips", "latents", "text_embeddings")
    node = Node(
        update_wrapper(partial(fine_tune, name=name), fine_tune),
        inputs=["params:stage", "params:inflate", "init", *shared, "checkpoints"],
        outputs=["model", "history"],
        name="fine_tune",
    )
    return Pipeline(
        [node],
        namespace=name,
        inputs={"init": "inflated_model", **{dataset: dataset for dataset in shared}},
        parameters={"params:stage": f"params:finetune_video.{name}", "params:inflate": "params:inflate"},
    )
