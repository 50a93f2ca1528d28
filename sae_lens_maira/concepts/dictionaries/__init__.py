"""A benchmark of dictionaries on exact truth: architectures of equal width and L0, over seeds, from one cache.

settings        what is compared
train           one cache, and every dictionary with every seed
readings        each study's strongest activation of each latent, and scores of reconstruction
probing         k-sparse probes
absorption      parents that fall silent where a child fires
monosemanticity how alike the studies are in which a latent fires
pairs           counterfactual renders: sensitivity, purity, and which latents carry a concept
exchange        disentanglement: latents exchanged between two renders
noise           the smallest difference that the seeds allow one to claim
run             all of it, resumable, into one folder of results
"""
