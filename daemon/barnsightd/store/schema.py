"""The columns of an observation, in segments and in Parquet alike (docs/store.md describes each)."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from barnsightd.types import Observation

SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        pa.field("captured_ns", pa.int64(), nullable=False),
        pa.field("frame", pa.int64(), nullable=False),
        pa.field("session", pa.int64(), nullable=False),
        pa.field("track", pa.int64(), nullable=False),
        pa.field("animal", pa.string()),
        pa.field("x0_px", pa.float32(), nullable=False),
        pa.field("y0_px", pa.float32(), nullable=False),
        pa.field("x1_px", pa.float32(), nullable=False),
        pa.field("y1_px", pa.float32(), nullable=False),
        pa.field("area_px", pa.float32(), nullable=False),
        pa.field("mask_rle", pa.binary()),
        pa.field("mask_height_px", pa.int32(), nullable=False),
        pa.field("mask_width_px", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("behavior", pa.string()),
        pa.field("model_set", pa.string(), nullable=False),
    ],
    metadata={"barnsight.schema_version": str(SCHEMA_VERSION)},
)


def to_batch(observations: Sequence[Observation]) -> pa.RecordBatch:
    """Lay observations of one camera out in columns; the camera is in the file's name."""
    x0_px, y0_px, x1_px, y1_px = zip(*(seen.box_px for seen in observations), strict=True)
    columns = {
        "captured_ns": [seen.captured_ns for seen in observations],
        "frame": [seen.frame for seen in observations],
        "session": [seen.session for seen in observations],
        "track": [seen.track for seen in observations],
        "animal": [seen.animal for seen in observations],
        "x0_px": x0_px,
        "y0_px": y0_px,
        "x1_px": x1_px,
        "y1_px": y1_px,
        "area_px": [seen.area_px for seen in observations],
        "mask_rle": [seen.mask_rle or None for seen in observations],
        "mask_height_px": [seen.mask_size[0] for seen in observations],
        "mask_width_px": [seen.mask_size[1] for seen in observations],
        "score": [seen.score for seen in observations],
        "state": [seen.state.value for seen in observations],
        "source": [seen.source.value for seen in observations],
        "behavior": [seen.behavior for seen in observations],
        "model_set": [seen.model_set for seen in observations],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    return pa.record_batch(arrays, schema=SCHEMA)


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables of this and earlier schema versions; a column that one lacks is null there."""
    if not tables:
        return SCHEMA.empty_table()
    return pa.concat_tables(tables, promote_options="default")
