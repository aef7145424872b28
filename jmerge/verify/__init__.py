"""Is a folder the model it claims to be? Checks as small functions of what is in it; see `checks`."""
