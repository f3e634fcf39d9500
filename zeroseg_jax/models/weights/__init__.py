"""Reads and writes the weights of models, in folders and on the Hugging Face hub."""
