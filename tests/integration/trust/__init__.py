"""Authors, the registry's own code, and the device's verifier, with a thief on the line between them."""
