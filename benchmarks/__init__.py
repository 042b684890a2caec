"""Measuring litemed: time, memory and accuracy."""
