"""Families of metrics: a module each, found by its name.

One of your own is a module on the Python path with `measure(evaluation: Evaluation) -> Result`, or such a function. It is
asked for by its dotted path, `metrics=[spectrum,mine.symmetry]`, and may say what it needs by these names:

NEEDS_A_MODEL: True where samples alone, such as a folder of images, are not enough.
NEEDS_FEATURES: True where features are always used: the extractor is then made ready before the sampling.
LEAST_IMAGES: how many samples, and images of either split, there must be; 2 where it is not said.
"""
