"""The phantom's words: requests and reports, the grammar behind them, and the exact scorer that reads them back.

::

    wording     the word lists: data without logic
    grammar     every sentence that a report can contain, and what it says
    report      a state to a report with labeled sentences
    requests    indication, technique and comparison
    scoring     a report back to what it says; F1 and IoU against the truth
"""
