"""What each tensor of a checkpoint is, read from names, shapes and config.json; no code of the model is run."""
