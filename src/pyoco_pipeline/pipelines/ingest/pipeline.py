"""ingest: captions (validated on save), clips, their latents for latent models, text embeddings."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.ingest.nodes import cut_clips, embed_captions, encode_latents, list_captions


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(list_captions, inputs="params:ingest", outputs="captions", name="list_captions"),
            Node(
                cut_clips,
                inputs=["captions", "params:ingest", "ingest_work"],
                outputs="clips",
                name="cut_clips",
            ),
            Node(encode_latents, inputs=["clips", "params:ingest"], outputs="latents", name="encode_latents"),
            Node(
                embed_captions,
                inputs=["captions", "params:ingest", "text_cache"],
                outputs="text_embeddings",
                name="embed_captions",
            ),
        ]
    )
