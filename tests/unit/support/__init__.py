"""The helpers of tests/support do what the tests rely on."""
