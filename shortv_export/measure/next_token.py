"""The distribution of the next token."""

from __future__ import annotations

from torch import Tensor

from ..errors import ShortVError


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities over the last dimension, float64 on the CPU.

    Small KL divergences are sums of differences that nearly cancel, hence float64.

    Raises:
        ShortVError: a logit is not finite.
    """
    values = logits.cpu().double().log_softmax(-1)
    if not bool(values.isfinite().all()):
        raise ShortVError("the model gives logits that are not finite; use `dtype` bfloat16 or float32.")
    return values
