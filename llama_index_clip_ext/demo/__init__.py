"""A demo that needs no download: drawn pictures and two tiny checkpoints that know them."""
