"""The cascade: what its stages are conditioned on, whether they fit together, and sampling through all of them."""
