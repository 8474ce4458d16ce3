"""Samples: images or videos with a question, drawn from a data set and encoded for a model."""

from .decode import Sample
from .draw import LOCAL_FILES, DrawnSamples, draw_samples
from .encode import Encoder, encode_samples
