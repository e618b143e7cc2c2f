"""The author's side: builds, signs, publishes and ships model bundles."""
