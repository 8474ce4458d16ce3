"""Samples: images or videos with a question, drawn from a data set and encoded for a model."""

from .decode import Sample
from .draw import Calibration, load_calibration
from .encode import encode_samples

__all__ = ["Calibration", "Sample", "encode_samples", "load_calibration"]
