"""How much was skipped: a line in the log, and metrics."""

from __future__ import annotations

import time

from prometheus_client import Counter as Metric
from vllm.logger import init_logger

from .plan import Plan

logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is below its own name

SECONDS = 60
"""At most one line in the log within this time."""

# vLLM shows metrics of other processes than its API server only if PROMETHEUS_MULTIPROC_DIR is set.
_SKIPPED = Metric(
    "vllm:shortv_skipped_token_updates",
    "Updates of visual tokens that frozen operators skipped: one per token and operator.",
    ["operator"],
)


class Counter:
    """What one model skipped since it was loaded, in updates: one per visual token and frozen operator.

    Attributes:
        steps: steps with visual tokens.
        attention: skipped updates by attention.
        ffn: skipped updates by feed-forward networks.
    """

    def __init__(self) -> None:
        self.steps = self.attention = self.ffn = 0
        self._logged = -float("inf")

    def add(self, plan: Plan) -> None:
        """Counts a step."""
        self.steps += 1
        for operator in ("attention", "ffn"):
            skipped = plan.num_visual * plan.calls.get(operator, 0)
            setattr(self, operator, getattr(self, operator) + skipped)
            _SKIPPED.labels(operator).inc(skipped)
        if time.monotonic() - self._logged >= SECONDS:
            self._logged = time.monotonic()
            logger.info(
                "ShortV: skipped %d attention and %d feed-forward updates of visual tokens in %d steps so far.",
                *(self.attention, self.ffn, self.steps),
            )
