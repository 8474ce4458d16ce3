"""`shortv-export demo`: every step from a base model to a published one, with no account and no download."""

from .run import run_demo
