"""What is kept: segments, sealed Parquet, SQLite, quotas."""
