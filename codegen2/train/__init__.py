"""Training: the span-corruption objective, the data iterator, the optimizers, the loop, the recipes."""
