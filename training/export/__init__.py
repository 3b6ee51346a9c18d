"""How does a trained network become a bundle? Graph, card, plots, example images, the candidates compared."""
