"""The report of a study or a release: one HTML file for whoever decides on a promotion."""
