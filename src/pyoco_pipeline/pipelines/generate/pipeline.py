"""generate: captioned clips through the cascade, lossless for metrics and encoded for people.

Every stage's clips are kept, so that a later stage can be sampled again by itself: `--nodes sample_sr256`.
"""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.cascade.stages import STAGES
from pyoco_pipeline.pipelines.generate.nodes import (
    check_cascade,
    continue_clips,
    sample_clips,
    take_last,
    write_stage_videos,
    write_videos,
)

_DATA = ("clips", "text_embeddings", "latents")


def create_pipeline(**_: object) -> Pipeline:
    newest_first = [f"{name}.clips" for name in reversed(STAGES)]
    return Pipeline(
        [
            Node(
                check_cascade,
                inputs={
                    "generate": "params:generate",
                    **{name: name for name in _DATA},
                    **{name: f"{name}.model" for name in STAGES},
                },
                outputs="cascade",
                name="check_cascade",
            ),
            Node(
                sample_clips,
                inputs=["params:generate", "cascade", "base.model", *_DATA],
                outputs="base.clips",
                name="sample_clips",
            ),
            *(_later(name, newest_first[-place:]) for place, name in enumerate(STAGES) if place > 0),
            Node(take_last, inputs=newest_first, outputs="generated_clips", name="take_last"),
            Node(
                write_videos,
                inputs=["generated_clips", "params:generate"],
                outputs=["videos", "contact_sheet"],
                name="write_videos",
            ),
            Node(
                write_stage_videos,
                inputs={"generate": "params:generate", **{name: f"{name}.clips" for name in STAGES}},
                outputs="stage_videos",
                name="write_stage_videos",
            ),
        ]
    )


def _later(name: str, newest_first: list[str]) -> Node:
    return Node(
        update_wrapper(partial(continue_clips, name=name), continue_clips),
        inputs=["params:generate", "cascade", f"{name}.model", *_DATA, *newest_first],
        outputs=f"{name}.clips",
        name=f"sample_{name}",
    )
