"""sae-dashboard's own pages and Neuronpedia's files, made from recorded activations."""
