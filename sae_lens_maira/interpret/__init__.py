"""Explanations of features, and scores that say how far they can be believed.

corpus, facts        studies cut into units, and what is known of each
evidence, examples   three disjoint sets of patients; units in which a feature is on or silent
rules, explain       explanations: by rules, by a model, or from a table
judges, audit        who says whether an explanation is true, and how good that judge is
scoring, scores      detection, intruders, controls
truth                on the phantom: are explanations right, and do scores say so?
chat, server, local_model, answers, privacy, prompts   language models, asked once and in safety
run, tables          the whole run and its result
formats/             Delphi's folders and Neuronpedia's batches
"""
