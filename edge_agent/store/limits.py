"""Bounds of the store alone."""

from typing import Final

from edge_contract.limits import KIB

ENTRY_BYTES: Final = 4 * KIB  # what a small file or a folder takes of the disk
WHEEL_GROWTH: Final = 8  # a wheel that is not here yet is planned with so many times its length; most need 3 to 4
TAR_GROWTH: Final = 4  # the same of a tar: one of tiny files takes a block for each kilobyte
