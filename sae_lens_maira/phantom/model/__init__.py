"""The phantom's model: a MAIRA-2 with about a two-thousandth of the parameters.

::

    architecture    sizes, initial weights and the processor
    tokenizer       a small Llama tokenizer, trained on the phantom's text
    pretrained      the shipped weights
"""
