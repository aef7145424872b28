"""What Python programs and the command call: each function a few named stages."""
