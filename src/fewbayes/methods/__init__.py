"""Fine-tuning methods: which weights are trained, which of them may be random, and what is saved.

Every method is one small file with the same verbs in the same order: attach, trainable, random, training,
export, load, detach. It registers itself (`registry.py`). Knows nothing of optimizers or run folders.
"""

from fewbayes.methods.registry import Method, MethodSettings, Registered, make_method, register, registered

__all__ = ["Method", "MethodSettings", "Registered", "make_method", "register", "registered"]
