"""pretrain_image: a text-conditional image model, trained on frames."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.pretrain_image.nodes import train_image_model


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                train_image_model,
                inputs=["params:pretrain_image", "clips", "latents", "text_embeddings", "image_checkpoints"],
                outputs=["image_model", "image_history"],
                name="train_image_model",
            )
        ]
    )
