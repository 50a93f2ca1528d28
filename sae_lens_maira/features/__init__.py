"""Data about every feature: where it fires, how strongly, with which other features, and the labels that it matches."""
