"""Scores of segmentations against ground truth, as in the paper's Table 3: `litemed-eval`."""
