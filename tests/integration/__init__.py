"""Parts of Lighterman together with real libraries, programs and services."""
