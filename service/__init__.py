"""The front door: a BentoML service over one engine, and the command line."""
