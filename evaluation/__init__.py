"""Tasks, measures and statistics: what an adapter gained and what it cost, paired with the backbone."""
