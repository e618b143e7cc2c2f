"""`edge-agent serve`: one bundle as a plain web service, away from any device (ADR 29).

The same worker and the same supervisor as on a device; in the place of director, journal and core there is one bundle
that is verified, unpacked into a private folder, proved, served, and gone without a trace afterwards.
"""
