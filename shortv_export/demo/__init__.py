"""`shortv-export demo`: the whole way on one machine, without an account and without a download."""

from .run import run_demo

__all__ = ["run_demo"]
