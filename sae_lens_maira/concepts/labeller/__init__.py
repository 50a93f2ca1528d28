"""A small rule labeller for reports: presence, uncertainty, side, size and change, by phrase lists that are data.

In the spirit of NegEx (Chapman et al. 2001) and ConText (Harkema et al. 2009): a *mention* of a finding takes its
meaning from *cues* in the same sentence, such as ``no``, ``possible`` or ``has resolved``. Rules and phrases are
our own.

    lexicon     reads a phrase list of ``phrases/`` or of your own
    sentences   splits a report
    matching    finds mentions and cues in a sentence
    meaning     what the cues say of each mention
    label       from mentions to the labels of a report
    judges      tables of labels that other programs wrote
    agreement   two sources of labels compared, with examples of disagreements
"""
