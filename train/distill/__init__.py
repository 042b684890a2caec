"""Distil a light image encoder from a LiteMedSAM: what `litemed-distill` does."""
