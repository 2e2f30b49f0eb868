"""Everything around the model at run time: wire format, sessions, engine, server and command line."""
