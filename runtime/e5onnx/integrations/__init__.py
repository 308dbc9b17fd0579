"""Other packages' interfaces to an encoder: one file for each package, behind an extra of its name."""
