"""Audio features, the transformers and what they may skip. Knows no network, no clock, no environment."""
