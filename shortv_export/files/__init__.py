"""Reads, writes, hashes and copies files, and checks the disk they go to."""

from .bundled import model_cards_dir, modeling_dir
from .copies import copies_are_clones, copy_file
from .disk import check_space, check_writable, same_device
from .exchange import recover, replacement
from .folders import move_over, new_folder
from .hashing import file_identity, file_sha256
from .json_file import MAX_JSON_BYTES, json_text, read_json, write_json, write_text
from .reading import open_regular, read_regular
from .temporary import lock, scratch_folder, temporary_beside
