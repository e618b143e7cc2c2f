"""One module for each library or system the registry stands on."""
