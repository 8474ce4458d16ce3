"""Talks to the Hugging Face Hub: requests with retries, downloads, and errors in one line."""

from .client import DELAYS, explained, hub_error, is_transient, retry, seconds_to_wait, status_of
from .downloads import bytes_to_download
from .local_file import LocalFile
from .xet import is_of_xet, plain_if_xet_fails, xet_storage

__all__ = [
    "DELAYS",
    "LocalFile",
    "bytes_to_download",
    "explained",
    "hub_error",
    "is_of_xet",
    "is_transient",
    "plain_if_xet_fails",
    "retry",
    "seconds_to_wait",
    "status_of",
    "xet_storage",
]
