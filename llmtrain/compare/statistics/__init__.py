"""How sure a difference is: seeds within series, items within groups, several differences at once; numpy and scipy."""
