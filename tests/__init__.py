"""Tests of Lighterman, by the kind of proof they give."""
