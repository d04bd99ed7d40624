"""finetune_video: one namespace per stage of the cascade."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.finetune_video.nodes import fine_tune

STAGES = {"base": "inflated_model"}  # stage -> what its weights start from


def create_pipeline(**_: object) -> Pipeline:
    return sum((_stage(name, init) for name, init in STAGES.items()), Pipeline([]))


def _stage(name: str, init: str) -> Pipeline:
    node = Node(
        update_wrapper(partial(fine_tune, name=name), fine_tune),
        inputs=["params:stage", "init", "clips", "latents", "text_embeddings", "checkpoints"],
        outputs=["model", "history"],
        name="fine_tune",
    )
    return Pipeline(
        [node],
        namespace=name,
        inputs={"init": init, **{name: name for name in ("clips", "latents", "text_embeddings")}},
        parameters={"params:stage": f"params:finetune_video.{name}"},
    )
