"""Training speed beside a plain PyTorch loop, and the effect of each setting."""
