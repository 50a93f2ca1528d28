"""The phantom's world: patients, their diseases and devices, and what X-ray images of them look like.

::

    concepts    the closed list of findings and devices, and how they change between two studies
    contexts    clinical settings: which concepts occur together, and how a patient evolves
    anatomy     one patient's body as numbers
    film        soft shapes drawn in body coordinates, and the exposure of the film
    frontal     the body from the front
    lateral     the body from the side, with its findings
    disease     diseases on the frontal view
    devices     devices on the frontal view
    scene       a state of a patient to pixels and boxes
"""
