"""Recipe and headers to a plan: plain data that says how every output tensor is made."""
