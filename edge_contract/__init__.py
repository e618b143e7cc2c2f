"""What crosses a wire or a disk between two parts of Lighterman, and nothing else.

Pure and standard library only: no clock, randomness, file, socket, thread, logging or environment, so that the same
code runs in the cloud, on a 32-bit device without compiled wheels, and under virtual time.
"""
