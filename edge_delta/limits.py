"""Bounds of a delta: what a decoder reads, holds and does at most, whatever the delta says."""

from typing import Final

CHUNK_ELEMENTS: Final = 32_768
"""Elements of a tensor that are decoded together."""

LANES_MAX: Final = 1_024
"""rANS states that run side by side."""

HEAD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Length of the head once decompressed: the operations, and the ranges of the glue's dictionary."""

OPERATIONS_MAX: Final = 32_768
"""Operations of one delta."""

RANGES_MAX: Final = 16_384
"""Ranges of the base that make the glue's dictionary."""

GLUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes between tensors, all together."""

GLUE_DICTIONARY_BYTES_MAX: Final = 1024 * 1024
"""Ranges of the base that the glue may refer to, all together."""

GLUE_WINDOW_LOG_MAX: Final = 20
"""Memory of the glue's frame, as a power of two: it is held beside everything else."""

DICTIONARY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Raw content that a window may refer to."""

SHORT_DICTIONARY_BYTES: Final = 128 * 1024
DICTIONARY_TIMES_MAX: Final = 64
"""How many times as long as its window a dictionary may be, above that: reading one is work, whatever comes of it."""

WINDOW_BYTES_MAX: Final = 2 * 1024 * 1024
"""Output of one window of bytes without known structure."""

MOVES_MAX: Final = 16_384
"""Runs of the base that one operation gathers."""

MOVE_BYTES_MIN: Final = 16
"""Length of such a run, at least: each is a read."""

ZSTD_WINDOW_LOG_MAX: Final = 23
"""Memory of a zstd frame, as a power of two: 8 MiB."""

SIDE_BYTES_MAX: Final = 768 * 1024
"""Side information of one tensor: classes, scales and factors."""

TENSOR_BYTES_MIN: Final = 256
"""Length of a predicted tensor, at least: each costs the work of a chunk."""

RANK_MAX: Final = 64
"""Rank of a low-rank prediction."""

FACTOR_BITS_MAX: Final = 26
"""Bits of one number of a factor: with their products and sums a float64 is exact up to 2**53."""

SHIFT_MAX: Final = 120
"""Largest power of two that a low-rank product is divided by."""

UNIT_BYTES: Final = 4 * 1024 * 1024
"""Output that one prefix digest covers."""

UNIT_DIGEST_BYTES: Final = 8
"""Length of a prefix digest: it tells damage early, the whole digest tells it surely."""

CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
"""Output between two checkpoints, at least."""

CHECKPOINT_STATE_BYTES_MAX: Final = 1024 * 1024
"""Length of a checkpoint."""

PEAK_BYTES_MAX: Final = 16 * 1024 * 1024
"""Memory of decoding beside Python, numpy and zstandard."""

READ_BYTES: Final = 256 * 1024
"""How much is copied or read at a time."""

FLOOR_BYTES: Final = 40 * 1024 * 1024
"""What an interpreter with numpy and zstandard takes before it decodes anything."""
