"""The LiteMedSAM network in PyTorch, its LoRA adapters and its weight files."""
