"""`python -m jmerge`: the same as the command."""

from jmerge.cli import program

program()
