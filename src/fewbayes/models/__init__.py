"""Model families: the only rooms that know diffusers and transformers.

`family` says what every family offers, `registry` finds the one of a model, and each family has a file of its own.
This file imports neither torch nor diffusers.
"""

from fewbayes.models.family import Family, ModelCard
from fewbayes.models.registry import inspect_model, load_family, meta_denoiser, meta_family, parameter_counts

__all__ = ["Family", "ModelCard", "inspect_model", "load_family", "meta_denoiser", "meta_family", "parameter_counts"]
