"""Boxes of other tools: tables, annotations and label masks, as voxels of the cases that they are for."""
