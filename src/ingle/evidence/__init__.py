"""The evidence: importance weights, streamed, and what they say of log p(x)."""
