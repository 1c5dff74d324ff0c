"""Whether a parametrisation does what it promises: every layer moves as far, and the best rate stays, at any width."""
