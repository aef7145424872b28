"""For tests of jmerge and of packages that extend it: tiny checkpoints, closeness, laws that every method obeys."""
