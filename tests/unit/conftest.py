"""Hypothesis without deadlines: a loaded machine is no failure."""

from hypothesis import settings

settings.register_profile("kernelpool", deadline=None)
settings.load_profile("kernelpool")
