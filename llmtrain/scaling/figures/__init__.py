"""Figures of a scaling study; matplotlib is imported when the first one is drawn."""
