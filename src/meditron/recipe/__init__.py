"""Recipes: what is to be built, from what, in which order, and what of it stands already."""
