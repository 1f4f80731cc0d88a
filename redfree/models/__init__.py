"""Models: frozen SAMs, their decoders and the training of the small ones."""
