"""A logits row to a token id."""
