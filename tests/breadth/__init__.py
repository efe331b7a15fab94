"""Every image-text-to-text type of transformers, tiny and in memory, against a reference of plain PyTorch."""
