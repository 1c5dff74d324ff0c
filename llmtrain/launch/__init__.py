"""Starting the ranks of a run on one machine, watching them, and starting them again; nothing here imports torch."""
