"""Kedro pipelines: nodes turn parameters into calls of the layers above; pipelines only wire them."""
