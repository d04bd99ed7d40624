"""evaluate: metrics of the generated clips, each with counts, extractor and floor."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.evaluate.nodes import score_clips


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                score_clips,
                inputs=["params:evaluate", "generated_clips", "clips", "reference_statistics"],
                outputs="metrics",
                name="score_clips",
            )
        ]
    )
