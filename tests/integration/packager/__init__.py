"""The packager against the registry it was made for, and against other people's tools."""
