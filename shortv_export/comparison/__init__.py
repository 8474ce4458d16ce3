"""A page that shows a package beside its base: on this machine, or as a Space."""

from .run import Page, require_comparable, show_page
from .space import PAGE_NAME, space_files
