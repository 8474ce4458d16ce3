"""Packages: the folders that are published, with recipe, remote code, card and figures."""

from .build import Draft, build_package, rebuild_package
from .card_metadata import inherited_metadata
from .contents import HANDLER_NAME, carried_files, expected_files
from .evaluation_files import check_task
from .inspection import Check, Inspection, inspect_package, require_intact
from .package import Package
from .rendering import MOST_BYTES
from .seal import is_as_made, rename_card, unpin_card
from .update import add_evaluation, require_updatable
