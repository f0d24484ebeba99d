"""New rows of a domain: what they are, whether there is anything to learn from them, and the fits that go on with them."""
