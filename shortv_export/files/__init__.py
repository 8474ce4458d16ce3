"""Reads, writes, hashes and links files, and checks the disk they go to."""

from .bundled import model_cards_dir, modeling_dir
from .disk import check_space, same_device
from .folders import becoming, carry
from .hashing import file_sha256
from .json_file import json_text, read_json, write_json, write_text

__all__ = [
    "becoming",
    "carry",
    "check_space",
    "file_sha256",
    "json_text",
    "model_cards_dir",
    "modeling_dir",
    "read_json",
    "same_device",
    "write_json",
    "write_text",
]
