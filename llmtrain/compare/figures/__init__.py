"""What a comparison looks like: scores, differences, growth with compute, and how alike features are."""
