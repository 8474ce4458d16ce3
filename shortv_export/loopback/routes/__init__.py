"""The answers to requests, a module for each subject; each has its `routes`."""
