"""What a merge says about itself: the ledger, the model card, the plan in words, progress."""
