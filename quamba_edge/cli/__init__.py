"""The command line, a table of verbs by groups: build and search (workstation), talk (a bundle speaks), board (this machine)."""

from quamba_edge.cli.command import EXIT_CODES, VERBS, main, parser
from quamba_edge.cli.reference import reference_markdown

__all__ = ["EXIT_CODES", "VERBS", "main", "parser", "reference_markdown"]
