"""Edits of features while the model writes: which features to choose, how strong a dose, and what it does."""
