"""Learning how weights round and activations scale, module by module; uses torch, so import it when used."""
