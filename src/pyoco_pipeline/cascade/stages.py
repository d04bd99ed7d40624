"""The stages of the cascade, in the order in which they sample."""

from typing import Literal, get_args

StageName = Literal["base", "interpolation", "sr256", "sr1024"]
STAGES: tuple[str, ...] = get_args(StageName)
