"""Weights: released ones enter an encoder; a trained one leaves as a folder for timm or Hugging Face."""
