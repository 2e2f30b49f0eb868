"""Everything around the model at run time."""
