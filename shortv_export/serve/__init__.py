"""Serves packages by transformers' own server, which knows no models but its own."""
