"""The demonstration: the whole of Lighterman on one machine, from a model file to devices that answer with it."""
