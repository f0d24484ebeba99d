"""The search of a release's decoding policy: nothing is fitted, adapters stay as they are."""
