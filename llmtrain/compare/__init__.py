"""Comparisons of objectives and architectures at matched compute, on yardsticks that all of them share."""
