"""Token ids to logits rows."""
