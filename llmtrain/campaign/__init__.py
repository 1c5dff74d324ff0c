"""The campaign of faults: many kills of real runs, all tests of faults, and one table of what was promised and held."""
