"""Data about every feature: where it fires, how strongly, its co-activation, and the labels that it matches."""
