"""ingest: captions (validated on save), clips, text embeddings."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.ingest.nodes import cut_clips, embed_captions, list_captions


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(list_captions, inputs="params:ingest", outputs="captions", name="list_captions"),
            Node(cut_clips, inputs=["captions", "params:ingest"], outputs="clips", name="cut_clips"),
            Node(
                embed_captions,
                inputs=["captions", "params:ingest"],
                outputs="text_embeddings",
                name="embed_captions",
            ),
        ]
    )
