"""How the phantom's weights were made and scored: ``python -m sae_lens_maira.phantom.training.train --out DIR``.

::

    config             every option with its default and unit
    pool               studies drawn once, as arrays
    vision_training    stage 1: the vision tower learns to see
    report_batches     stage 2: prompts with several answers, as batches
    report_training    stage 2: the projector and the language model learn to report
    optimization       both stages as loops that can be resumed
    train              all steps, from the pool to the checkpoint
    evaluate           scores on held-out studies
    card               the model card
"""
