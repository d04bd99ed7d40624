"""digits_classifier: the reader behind the digits3d metrics; its weights are shipped, not made in a default run."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.digits_classifier.nodes import train_classifier


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                train_classifier,
                inputs="params:digits_classifier",
                outputs="digits_classifier",
                name="train_classifier",
            )
        ]
    )
