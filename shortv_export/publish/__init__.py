"""Publishes a package on the Hub, in one commit."""

from .forecast import Forecast, forecast_push
from .push import Push, push_package
from .repository import inspect_repository
from .space import inspect_space
