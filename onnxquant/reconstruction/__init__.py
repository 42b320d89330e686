"""Learning how weights round and activations scale, module by module; `reconstruct` and `soft` import torch."""
