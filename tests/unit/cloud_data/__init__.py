"""Content, trust metadata and certificates of the registry, without HTTP."""
