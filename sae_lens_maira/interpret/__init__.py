"""Explanations of features, and scores that say how far they can be believed."""
