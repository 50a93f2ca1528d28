"""The phantom's model: its architecture, its tokenizer, and the weights that are shipped."""
