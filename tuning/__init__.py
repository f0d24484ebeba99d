"""Recipes, training methods, and the sweep for domain gain subject to retained reasoning."""
