"""Publishes a package on the Hub, in one commit."""

from .forecast import Forecast, forecast_push
from .push import Push, push_package
from .target import preflight

__all__ = ["Forecast", "Push", "forecast_push", "preflight", "push_package"]
