"""All attacks, by being imported."""

from adversary import blocks, floods, network, places, pools, scribbling, setup, streams, transfers

__all__ = ["blocks", "floods", "network", "places", "pools", "scribbling", "setup", "streams", "transfers"]
