"""Jobs: sweeps and gates that the service starts in processes of their own, kept in the home so that they outlive it."""
