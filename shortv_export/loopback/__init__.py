"""A Hugging Face Hub on the loopback interface, for the demo and the tests: no account, no network."""

from . import routes
from .hub import LoopbackHub
from .messages import Request
from .repository import Commit
