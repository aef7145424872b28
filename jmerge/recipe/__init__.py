"""YAML text to typed, frozen recipes that remember their line numbers."""
