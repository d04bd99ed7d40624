"""The stages of the cascade, in the order in which they sample."""

STAGES = ("base", "interpolation", "sr256", "sr1024")
