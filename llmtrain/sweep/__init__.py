"""Many runs as one question: a plan of cells, each a run of its own, and what is made of their records."""
