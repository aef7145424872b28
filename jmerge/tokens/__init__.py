"""Vocabularies: which token has which row in every model, the tokenizer of the output, chat templates.

Pure functions over parsed files; no array of weights is read. `model` reads what a model has, `align` decides what the
output has and which rows make it.
"""
