"""Formats of other tools: Delphi's folders, both ways, and Neuronpedia's batches of explanations."""
