"""inflate: the image model becomes a video model that equals it frame by frame."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.inflate.nodes import inflate_image_model


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                inflate_image_model,
                inputs=["params:inflate", "image_model"],
                outputs="inflated_model",
                name="inflate_image_model",
            )
        ]
    )
