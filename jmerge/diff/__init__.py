"""What is another model's: tensors of two checkpoints paired, and how far their values are apart; see `compare`."""
