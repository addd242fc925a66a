"""List files and tables: paths and labels by line or row, and images inside Parquet files."""
