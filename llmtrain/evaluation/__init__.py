"""Yardsticks: what a trained model is worth apart from its own loss, alike for every objective and architecture."""
