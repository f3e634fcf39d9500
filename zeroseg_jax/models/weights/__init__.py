"""Reading and writing weights: from the hub or a folder, to the parameters of a model."""
