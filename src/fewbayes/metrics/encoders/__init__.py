"""Models that turn pictures and prompts into features, a file for each role; `load_encoders` loads them all."""

from fewbayes.metrics.encoders.base import Encoder, Encoders, Identity, Missing, encoder_keys, load_encoders

__all__ = ["Encoder", "Encoders", "Identity", "Missing", "encoder_keys", "load_encoders"]
