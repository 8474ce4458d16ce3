"""The answers to requests, one module for each subject. Importing them registers them."""

from . import commits, files, references, repositories
