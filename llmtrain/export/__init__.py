"""Models as the public implementations have them, with equal logits: written for others to open, and read from them."""
