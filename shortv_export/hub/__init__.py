"""Talks to the Hugging Face Hub: requests with retries and time-outs, downloads, and errors in one line."""

from .client import DELAYS, hub_error, is_transient, retry, seconds_to_wait, status_of
from .downloads import cached_repo_id, download_files
from .local_file import LocalFile
from .session import prepare
from .xet import is_of_xet, plain_if_xet_fails, xet_storage

prepare()
